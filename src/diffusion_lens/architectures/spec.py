"""How an architecture is described: as data, which module is which.

Nothing here runs a model. A family is a `DenoiserSpec` with one `BlockSpec` for each block class;
the engine reads these and attaches hooks to the modules that they name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Gate:
    """What turns a sublayer's raw output into its update: a factor, a norm, or both.

    A factor is given by a module of the block or by an argument of it, as a tuple, as one tensor
    that holds several factors side by side along its last axis, or on an axis of their own before
    it.

    Attributes:
        module: Path of the module that gives the factor; empty where an argument does.
        index: Which of a tuple, or of the tensor's pieces; None for all of what is given.
        pieces: How many factors lie side by side in one tensor; 1 where a tuple holds them.
        argument: The block's argument that holds it.
        stacked: Whether the factors have an axis of their own, before the last.
        table: Path of a parameter of the block that is added to the tensor, factor by factor.
        row: Which row of the table, where that has others than the tensor has factors.
        upcast: Whether they are added in float32, whatever their precision.
        limit: Bound on the factor's magnitude, before its activation; None for none.
        activation: Of the factor: `"tanh"`, `"sigmoid"`, or none.
        norm: Path of the module that the raw output passes before the factor (sandwich norms).
    """

    module: str = ""
    index: int | None = None
    pieces: int = 1
    argument: str | None = None
    stacked: bool = False
    table: str | None = None
    row: int | None = None
    upcast: bool = False
    limit: float | None = None
    activation: str | None = None
    norm: str | None = None

    @property
    def has_factor(self) -> bool:
        """Whether there is a factor, not only a norm."""
        return bool(self.module or self.argument)


@dataclass(frozen=True)
class Projection:
    """The module that turns concatenated per-head values into the residual width.

    Attributes:
        module: Path inside the block.
        streams: The streams along its sequence, in order.
        fused: Whether the input goes on after the heads' columns with the MLP's neurons.
    """

    module: str
    streams: tuple[str, ...]
    fused: bool = False


@dataclass(frozen=True)
class Kept:
    """References whose keys and values one evaluation keeps for later ones.

    In the evaluation that makes them they are the first of the image's tokens, and see themselves
    alone: each attention makes a product of all other queries, then one of theirs. In those that
    use them they are keys and values only, before the image's own.

    Attributes:
        mode: The denoiser's argument that says which it is.
        making: Its value where they are made.
        using: Its value where they are used.
        count: The argument with their number, where they are made; the attribute of `cache` with
            it, where they are used.
        cache: The argument that brings them.
        instead: What to run for what cannot be had with kept references.
    """

    mode: str
    making: str
    using: str
    count: str
    cache: str
    instead: str


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention module of a block.

    Attributes:
        name: Its name in hook points: `attn`, `cross_attn` or `self_attn`, or that of what it
            reads besides.
        module: Path inside the block.
        queries: Streams along the query sequence, in order.
        keys: Streams along the key sequence, in order.
        projections: For each query stream the projection that takes its z.
        outputs: For each stream its place in the module's return value (None: the only one).
        gates: For each stream the gate on this sublayer's update; missing means 1.
        before_rope: For each stream the modules whose outputs are q and k before rotary
            embedding; streams that share them in the order of their sequence. None in place of the
            queries of a stream that has none.
        heads_first: Whether these outputs have axes batch, head, pos, d_head, in place of batch,
            pos, head, d_head.
        heads_joined: Whether they have axes batch, pos, d: the norm is over all heads together.
        products: Names of the attention products of one call, in order; that of the streams' own
            keys is `""`, others are image prompts. Empty for linear attention, which has no
            pattern.
        context: The module's argument that carries the text, or another stream, into k and v
            (cross-attention).
        sizes: Number of heads and width of a head, where the module has no `heads` and `inner_dim`.
        gated: Whether z is changed between the product and the projection (output gates), so that
            `hook_z` is read where it leaves the product.
        kept: The denoiser's argument that says which tokens of the sequence's last stream take
            part, where the module makes one product for each sample, of these alone; None where one
            product serves the batch.
    """

    name: str
    module: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    projections: Mapping[str, Projection]
    outputs: Mapping[str, int | None] = field(default_factory=dict)
    gates: Mapping[str, Gate] = field(default_factory=dict)
    before_rope: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)
    heads_first: bool = False
    heads_joined: bool = False
    products: tuple[str, ...] = ("",)
    context: str | None = None
    sizes: tuple[int, int] | None = None
    gated: bool = False
    kept: str | None = None

    def head_sizes(self, module: Any) -> tuple[int, int]:
        """Number of heads and width of a head, given the module."""
        return self.sizes or (module.heads, module.inner_dim // module.heads)

    def sequences(self, product: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The streams along queries and keys of a product; image prompts are read by the image."""
        return (("img",), (product,)) if product else (self.queries, self.keys)


@dataclass(frozen=True)
class Router:
    """What chooses between tokens and the experts of an MLP, by the `torch.topk` of its scores.

    Attributes:
        module: Path of the module that makes the choice.
        logits: Path of the module that returns the logits; None where `module` works them out
            itself, by its one call of `F.linear`.
        chooser: `"token"` where each token takes its experts, `"expert"` where each expert takes
            its tokens.
        weights: Place in what `module` returns of the factors on the outputs of the experts that a
            token took; None where they are not returned.
        scores: What makes the scores of the logits: `"softmax"` over experts, or `"sigmoid"`.
    """

    module: str
    logits: str | None = None
    chooser: str = "token"
    weights: int | None = None
    scores: str = "softmax"


@dataclass(frozen=True)
class Mlp:
    """The MLP of one stream.

    Attributes:
        module: Path of the module that returns the raw output; None where it shares a fused
            projection with the attention.
        down: Path of the module whose input is the neurons; None where no single module has them
            (mixtures of experts).
        gate: Factor on its update; None means 1.
        streams: The streams along its sequence, in order, where one call serves several.
        call: Which of the calls of one evaluation serves the stream, where the module is called
            once for each; None where there is one.
        maps: What it works on in place of tokens: `"channel first"` (axes batch, channel, height,
            width), `"channel last"` (batch, frame, height, width, channel); empty for tokens.
        router: What chooses among its experts; None where it has none.
    """

    module: str | None
    down: str | None
    gate: Gate | None = None
    streams: tuple[str, ...] = ()
    call: int | None = None
    maps: str = ""
    router: Router | None = None


@dataclass(frozen=True)
class Mid:
    """A place between sublayers where a module's argument is the residual tensor itself.

    Attributes:
        name: `resid_mid` (the stream entering the MLP), `resid_mid_self` or `resid_mid_cross`.
        module: Path inside the block.
        updates: The sublayers added since the previous place, in order.
        argument: Position of the residual among the module's arguments.
        copied: Whether the module gets a copy of the residual (Wan casts it to float32), so that an
            edit has to be carried to what the block adds to later.
        beside: Whether the sum goes into the sublayer alone (AuraFlow): the residual goes on
            without these updates.
    """

    name: str
    module: str
    updates: tuple[str, ...]
    argument: int = 0
    copied: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Stream:
    """One residual stream through a block.

    Attributes:
        argument: The block's argument that brings it in.
        output: Its place in the block's return value (None: the only one).
        mids: Places between the sublayers.
        updates: The sublayers added after the last of them, in order.
        returned: Whether the block hands the stream on.
        within: The streams that share the argument and the output, in order; empty where the stream
            has them to itself.
        clamped: Whether the block keeps what it returns in the range of float16.
        entrance: Path of the module whose first argument is the stream as the sublayers add to it,
            where the block changes what it is given first (positions, long skips); None where the
            stream enters as it is.
        positions_first: Whether the tensors outside attention, factors of gates among them, have
            axes pos, batch, d_model.
    """

    argument: str
    output: int | None
    mids: tuple[Mid, ...] = ()
    updates: tuple[str, ...] = ("mlp",)
    returned: bool = True
    within: tuple[str, ...] = ()
    clamped: bool = False
    entrance: str | None = None
    positions_first: bool = False


@dataclass(frozen=True)
class Positions:
    """An argument that holds something for each token: rotary embeddings, as a rule.

    It is a tensor, or a tuple of tensors that are alike.

    Attributes:
        streams: The streams along the tokens, in order.
        axis: The tokens' axis.
        part: Which of the tuple this is about, where its parts belong to streams of their own; None
            for all of them.
    """

    streams: tuple[str, ...]
    axis: int = 0
    part: int | None = None


Placed = Mapping[str, tuple[Positions, ...]]
"""Arguments with positions by name; several entries where the parts of a tuple differ."""


@dataclass(frozen=True)
class Concepts:
    """How a block takes concept tokens in place of its text.

    Modules that the block's description names for the image and not for the text (gates,
    projections, MLP) do not run for concepts; one that serves both must be named for both.

    Attributes:
        attention: Name of the joint attention.
        modulation: The block's argument that takes the modulation vector.
        positions: Arguments with something for each token: concepts take what one token of the text
            has.
        masks: Arguments to leave out, where the block is given them.
        by_default: Whether concepts pass through the block without being asked to. ConceptAttention
            stops before blocks whose weights text and image share, where there are others.
    """

    attention: str = "attn"
    modulation: str = "temb"
    positions: Placed = field(default_factory=dict)
    masks: tuple[str, ...] = ("attention_mask",)
    by_default: bool = True


@dataclass(frozen=True, eq=False)
class BlockSpec:
    """One block class.

    Attributes:
        streams: Its residual streams.
        attentions: Its attention modules, in order of execution.
        mlps: The MLP of each stream.
        absent: Names (after the block's prefix) that do not exist here, with the reason.
        concepts: How it takes concept tokens; None where it cannot.
    """

    streams: Mapping[str, Stream]
    attentions: tuple[Attention, ...]
    mlps: Mapping[str, Mlp]
    absent: Mapping[str, str] = field(default_factory=dict)
    concepts: Concepts | None = None

    def attention(self, name: str) -> Attention:
        """The attention module of that name."""
        return next(attention for attention in self.attentions if attention.name == name)


@dataclass(frozen=True, eq=False)
class BlockSite:
    """A block found in a model.

    Attributes:
        index: Its number in execution order.
        path: Its path in the denoiser.
        spec: What it consists of.
        level: How often the latents were halved on the way here.
        prefix: What its hook-point names begin with, without the final dot.
        refines: Whether it is one of those that refine a stream before the blocks.
    """

    index: int
    path: str
    spec: BlockSpec
    level: int = 0
    prefix: str = ""
    refines: bool = False

    def inside(self, module: str) -> str:
        """Path in the denoiser of a module of this block."""
        return f"{self.path}.{module}"


@dataclass(frozen=True)
class ModulePoint:
    """A hook point outside the blocks, at the border of a module.

    Attributes:
        name: Its full name.
        axes: Its axes, batch first.
        module: Path in the denoiser; empty for the denoiser itself.
        argument: Read this argument of the module; further entries go into containers.
        output: Read this part of the output (None: the only one), where `argument` is None.
        stream: The stream along its `pos` axis.
        level: How often the latents were halved on the way here.
        skipped: How many tokens at the start of the stream are not there yet (registers).
        held: How many tokens of the stream are there, where others come by another argument; None
            where all are.
    """

    name: str
    axes: tuple[str, ...]
    module: str
    argument: tuple[str | int, ...] | None = None
    output: int | None = None
    stream: str | None = None
    level: int = 0
    skipped: int = 0
    held: int | None = None


@dataclass(frozen=True)
class TextPart:
    """A stretch of the text stream that one tokenizer makes.

    Attributes:
        tokenizer: Attribute of the pipeline.
        length: Number of tokens, or None: as many as the run lets the pipeline keep.
        prompt: The argument of `encode_prompt` that fills it, where it is given.
        template: What the pipeline makes of a prompt before it goes to the tokenizer, given the
            pipeline and the prompt: a chat, a cleaned prompt. None where it goes as it is.
        dropped: How many tokens at the start the pipeline cuts away again, given the pipeline.
        before: How many further tokens stand in the stream before these (registers), given the
            pipeline and the number of tokens, padding apart.
        bare: Whether the tokenizer is told to add no start and end tokens.
        padded: Whether padding stays in the stream, so that one in front moves the words.
        in_front: Whether the pipeline itself fills up in front, whatever the tokenizer does.
        reserved: How many places at the end the pipeline keeps for tokens of its own, given the
            pipeline.
        pieces: The pieces of a prompt that are tokenized one by one, given the pipeline and the
            prompt; None where it is tokenized as a whole.
        negative: How a negative prompt fills the stretch; None where it does so like any other.
        assumed: Arguments of `encode_prompt`, or of the pipeline's call, whose defaults all this is
            true for; words of runs that give others cannot be told.
        cut: How the pipeline cuts a prompt that is too long, where it does not keep just the tokens
            up to the limit, so that words of such a prompt cannot be told.
        misrepeated: Whether prompts that are drawn several times each get each other's masks
            (diffusers 0.42.1), which decide where words lie: they can be told where all prompts of
            a batch are as long.
        of_call: Whether the prompts are those of the pipeline's call, where that has no
            `encode_prompt`.
        untold: Why words cannot be told in any run; empty where they can.
    """

    tokenizer: str
    length: int | None = None
    prompt: str = "prompt"
    template: Callable[[Any, str], str] | None = None
    dropped: Callable[[Any], int] | None = None
    before: Callable[[Any, int], int] | None = None
    bare: bool = False
    padded: bool = True
    in_front: bool = False
    reserved: Callable[[Any], int] | None = None
    pieces: Callable[[Any, str], Sequence[str]] | None = None
    negative: TextPart | None = None
    assumed: tuple[str, ...] = ()
    cut: str = ""
    misrepeated: bool = False
    of_call: bool = False
    untold: str = ""


@dataclass(frozen=True)
class ConceptEntry:
    """How concept tokens enter a denoiser.

    Attributes:
        through: Paths of what the text passes on its way to the first block, in order; of a list of
            modules each. Concepts pass the same, with the arguments that these are called with for
            the text, which is their first argument. Where one mixes tokens (a refiner), it takes
            the concepts as one text.
        positions: Their arguments with something for each token of the text.
        masks: Their arguments to leave out, where they are given.
        modulation: Path of the module that makes the modulation vector (the first of what it
            returns, where that is a tuple).
        pooled_argument: Its argument that takes the pooled text embedding; None where it takes
            none, so that concepts share the image's modulation.
        pooled: What the published method gives it for concepts: `"zeros"` or `"prompt"`.
    """

    through: tuple[str, ...] = ("context_embedder",)
    positions: Placed = field(default_factory=dict)
    masks: tuple[str, ...] = ("attention_mask",)
    modulation: str = "time_text_embed"
    pooled_argument: str | None = None
    pooled: str = "prompt"


@dataclass(frozen=True)
class Aside:
    """What an argument of the denoiser makes of an evaluation: a prediction beside the branches.

    Attributes:
        branch: What the branch of such an evaluation is called.
        left_out: Paths inside a block of the modules that do not run in it.
    """

    branch: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class DenoiserSpec:
    """One family of denoisers.

    Attributes:
        denoiser: Class name of the denoiser, as diffusers spells it.
        family: How the family is called in tables.
        blocks: For each block class name, what such a block consists of.
        outside: The hook points outside the blocks, given the denoiser.
        latents: The denoiser's argument that takes the latents.
        text: The one that takes the text embeddings.
        text_beside: Further ones with text embeddings of the same stream.
        image_length: Number of image tokens, from the denoiser and its arguments, where they are
            others than the grid's: references stand in the same stream, or text in the latents.
        grid: Token grid from the denoiser, its arguments and a level.
        grid_from: The argument whose values make the grid; None where shapes alone do.
        default_grid: Token grid at the model's native size, from the denoiser.
        text_parts: How the tokenizers fill the text stream.
        text_tokens: Length of the text stream where a pipeline's defaults are used.
        guidance: `"batched"` where one call carries the branches of `branches`, in that order;
            `"calls"` where each branch has its own call.
        branches: The branches under guidance, in batch order or in call order.
        timestep_scale: Scheduler timesteps for one unit of the denoiser's `timestep`; negative
            where that counts from the clean image.
        text_ends_in_last_block: Whether the last block's text output is thrown away.
        concepts: How concept tokens enter; None where there are no concept streams.
        without_concepts: Why there are none, where text has a stream of its own.
        to_context: Paths of what the text passes before cross-attention reads it, in order, each
            module taking it alone; empty where it is read as it is, None where this is not said.
        order: Sort key of block paths that gives the order of execution; that of the modules where
            left out.
        level: How often the latents were halved before the block at a path.
        apart: Paths in the denoiser whose attention is left out, with the reason: text refiners
            and the like.
        refiners: For each list of blocks that refine a stream before the others run, by its path
            and in order of execution, what such a block consists of.
        text_length: Number of text tokens of each sample along a sequence that text and image
            share, from the denoiser and its arguments; those of `text` where left out.
        timestep: The denoiser's argument that takes the timestep.
        between: For each stream that the denoiser itself changes between a block and the next, what
            it does there, from the denoiser and the block's number; empty where it hands all on.
        further: For each stream beside image and text the argument that it comes from, with as many
            tokens.
        pooled: For each argument with text that the denoiser itself pools into what modulates the
            image, the path of the module that pools it into one vector for each sample.
        withheld: Full names of hook points that are not offered, with the reason: those of a
            provisional description at which the contract failed.
        batch_second: Arguments of the denoiser whose second axis is the batch, not the first.
        asides: For each argument of the denoiser with which it makes a prediction of another kind,
            where it is given and not false, what that is.
        without_batch: Those that have none: their first axis is another one, however long.
        kept: How keys and values of references are kept across evaluations; None where they never
            are.
    """

    denoiser: str
    family: str
    blocks: Mapping[str, Callable[[nn.Module], BlockSpec]]
    outside: Callable[[nn.Module], tuple[ModulePoint, ...]]
    latents: str
    text: str
    grid: Callable[[nn.Module, Mapping[str, Any], int], tuple[int, ...]]
    default_grid: Callable[[nn.Module, int], tuple[int, ...]]
    text_parts: tuple[TextPart, ...]
    text_tokens: int
    guidance: str = "batched"
    branches: tuple[str, ...] = ("uncond", "cond")
    timestep_scale: float = 1.0
    grid_from: str | None = None
    text_ends_in_last_block: bool = False
    concepts: ConceptEntry | None = None
    without_concepts: str = ""
    to_context: tuple[str, ...] | None = None
    order: Callable[[str], tuple[int, ...]] = lambda _path: (0,)
    level: Callable[[nn.Module, str], int] = lambda _denoiser, _path: 0
    apart: Mapping[str, str] = field(default_factory=dict)
    refiners: Mapping[str, Callable[[nn.Module], BlockSpec]] = field(default_factory=dict)
    text_length: Callable[[nn.Module, Mapping[str, Any]], Sequence[int]] | None = None
    timestep: str = "timestep"
    text_beside: tuple[str, ...] = ()
    image_length: Callable[[Any, Mapping[str, Any]], int] | None = None
    between: Callable[[Any, int], Mapping[str, str]] = lambda _denoiser, _block: {}
    further: Mapping[str, str] = field(default_factory=dict)
    pooled: Mapping[str, str] = field(default_factory=dict)
    withheld: Mapping[str, str] = field(default_factory=dict)
    batch_second: tuple[str, ...] = ()
    asides: Mapping[str, Aside] = field(default_factory=dict)
    without_batch: tuple[str, ...] = ()
    kept: Kept | None = None
