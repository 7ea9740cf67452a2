"""How an architecture is described: as data, which module is which.

Nothing here runs a model. A family is a `DenoiserSpec` with one `BlockSpec` for each block class;
the engine reads these and attaches hooks to the modules that they name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Gate:
    """A factor on an update: output number `index` of the submodule `module`."""

    module: str
    index: int


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


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention module of a block.

    Attributes:
        name: Its name in hook points: `attn`, `cross_attn` or `self_attn`.
        module: Path inside the block.
        queries: Streams along the query sequence, in order.
        keys: Streams along the key sequence, in order.
        projections: For each query stream the projection that takes its z.
        outputs: For each stream its place in the module's return value (None: the only one).
        gates: For each stream the gate on this sublayer's update; missing means 1.
        before_rope: For each stream the modules whose outputs are q and k before rotary
            embedding; streams that share them in the order of their sequence.
        heads_first: Whether these outputs have axes batch, head, pos, d_head, in place of batch,
            pos, head, d_head.
        products: Names of the attention products of one call, in order; the first is `""`.
        context: The module's argument that carries the text into k and v (cross-attention).
    """

    name: str
    module: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    projections: Mapping[str, Projection]
    outputs: Mapping[str, int | None] = field(default_factory=dict)
    gates: Mapping[str, Gate] = field(default_factory=dict)
    before_rope: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    heads_first: bool = False
    products: tuple[str, ...] = ("",)
    context: str | None = None

    def sequences(self, product: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The streams along queries and keys of a product; image prompts are read by the image."""
        return (("img",), (product,)) if product else (self.queries, self.keys)


@dataclass(frozen=True)
class Mlp:
    """The MLP of one stream.

    Attributes:
        module: Path of the module that returns the raw output; None where it shares a fused
            projection with the attention.
        down: Path of the module whose input is the neurons.
        gate: Factor on its update; None means 1.
        streams: The streams along its sequence, in order, where one call serves several.
    """

    module: str | None
    down: str
    gate: Gate | None = None
    streams: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mid:
    """A place between sublayers where a module's argument is the residual tensor itself.

    Attributes:
        name: `resid_mid` (the stream entering the MLP) or `resid_mid_self`.
        module: Path inside the block.
        updates: The sublayers added since the previous place, in order.
        argument: Position of the residual among the module's arguments.
    """

    name: str
    module: str
    updates: tuple[str, ...]
    argument: int = 0


@dataclass(frozen=True)
class Stream:
    """One residual stream through a block.

    Attributes:
        argument: The block's argument that brings it in.
        output: Its place in the block's return value (None: the only one).
        mids: Places between the sublayers.
        updates: The sublayers added after the last of them, in order.
        returned: Whether the block hands the stream on.
    """

    argument: str
    output: int | None
    mids: tuple[Mid, ...] = ()
    updates: tuple[str, ...] = ("mlp",)
    returned: bool = True


@dataclass(frozen=True)
class Concepts:
    """How a block takes concept tokens in place of its text.

    Modules that the block's description names for the image and not for the text (gates,
    projections, MLP) do not run for concepts; one that serves both must be named for both.

    Attributes:
        attention: Name of the joint attention.
        modulation: The block's argument that takes the modulation vector.
        positions: Arguments with rotary embeddings (a tensor or a tuple of them, token by token),
            and the streams along them: concepts take the position of the first text token.
        masks: Arguments to leave out.
        by_default: Whether concepts pass through the block without being asked to. ConceptAttention
            stops before blocks whose weights text and image share.
    """

    attention: str = "attn"
    modulation: str = "temb"
    positions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    masks: tuple[str, ...] = ()
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
    """

    index: int
    path: str
    spec: BlockSpec
    level: int = 0
    prefix: str = ""

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
    """

    name: str
    axes: tuple[str, ...]
    module: str
    argument: tuple[str | int, ...] | None = None
    output: int | None = None
    stream: str | None = None
    level: int = 0


@dataclass(frozen=True)
class TextPart:
    """A stretch of the text stream that one tokenizer makes.

    Attributes:
        tokenizer: Attribute of the pipeline.
        length: Number of tokens, or None: what is left of the stream.
        prompt: The argument of `encode_prompt` that fills it, where it is given.
    """

    tokenizer: str
    length: int | None = None
    prompt: str = "prompt"


@dataclass(frozen=True)
class ConceptEntry:
    """How concept tokens enter a denoiser.

    Attributes:
        projection: Path of the module that brings text embeddings to the residual width.
        modulation: Path of the module that makes the modulation vector.
        pooled_argument: Its argument that takes the pooled text embedding; None where it takes
            none, so that concepts share the image's modulation.
        pooled: What the published method gives it for concepts: `"zeros"` or `"prompt"`.
    """

    projection: str = "context_embedder"
    modulation: str = "time_text_embed"
    pooled_argument: str | None = "pooled_projection"
    pooled: str = "zeros"


@dataclass(frozen=True)
class DenoiserSpec:
    """One family of denoisers.

    Attributes:
        denoiser: Class name of the denoiser, as diffusers spells it.
        family: How the family is called in tables.
        blocks: For each block class name, what such a block consists of.
        order: Sort key of block paths that gives the order of execution.
        level: How often the latents were halved before the block at a path.
        outside: The hook points outside the blocks, given the denoiser.
        latents: The denoiser's argument that takes the latents.
        text: The one that takes the text embeddings.
        grid: Token grid from the denoiser, its arguments and a level.
        grid_from: The argument whose values make the grid; None where shapes alone do.
        default_grid: Token grid at the model's native size, from the denoiser.
        text_parts: How the tokenizers fill the text stream.
        text_tokens: Length of the text stream where a pipeline's defaults are used.
        guidance: `"batched"` where one call carries the branches of `branches`, in that order;
            `"calls"` where each branch has its own call.
        branches: The branches under guidance, in batch order or in call order.
        timestep_scale: Scheduler timesteps for one unit of the denoiser's `timestep`.
        text_ends_in_last_block: Whether the last block's text output is thrown away.
        concepts: How concept tokens enter; None where there are no concept streams.
    """

    denoiser: str
    family: str
    blocks: Mapping[str, Callable[[nn.Module], BlockSpec]]
    order: Callable[[str], tuple[int, ...]]
    level: Callable[[nn.Module, str], int]
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
