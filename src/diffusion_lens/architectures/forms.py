"""The forms that families share: a family names one, and what its own classes call their parts.

Every form gives the plain description of `spec.py`; nothing else in the library knows of forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from diffusion_lens.architectures.spec import (
    Attention,
    BlockSpec,
    Concepts,
    Gate,
    Mid,
    Mlp,
    ModulePoint,
    Placed,
    Positions,
    Projection,
    Stream,
)

Block = Callable[[nn.Module], BlockSpec]
Products = Callable[[Any], tuple[str, ...]]
Sizes = Callable[[Any], tuple[int, int]]
Grid = Callable[[nn.Module, Mapping[str, Any], int], tuple[int, ...]]
Gates = tuple[Gate | None, Gate | None]
"""Of the attention's update and of the MLP's."""

ARGUMENTS = {"img": "hidden_states", "txt": "encoder_hidden_states"}
TXT_IMG, IMG_TXT = ("txt", "img"), ("img", "txt")
LINEAR = "linear attention: it sums over the keys before it meets a query, and has no pattern"
EXPERTS = "a mixture of experts: each token's neurons lie in the experts that it is sent to"
TEXT_UNKNOWN = "what its text passes before it meets the image is not described"
TEXT_ANSWERS = "its text gives keys and values and has no queries of its own"
PARALLEL = "attention and MLP run in parallel here, nothing lies between them"

PRODUCT_POINTS = (
    *(f"attn.img.hook_{which}" for which in "qkv"),
    "attn.hook_attn_scores",
    "attn.hook_pattern",
)
"""What self-attention has that is a product of queries and keys."""


# -- positions of tokens ----------------------------------------------------------------------


def placed(argument: str, *streams: str, axis: int = 0) -> Placed:
    """An argument with rotary embeddings of these streams, one behind the other."""
    return {argument: (Positions(streams, axis),)}


def placed_apart(argument: str, *streams: str) -> Placed:
    """An argument with a tuple of them, one part for each stream."""
    return {argument: tuple(Positions((name,), part=at) for at, name in enumerate(streams))}


# -- gates ------------------------------------------------------------------------------------


def adaptive(norm: str) -> tuple[Gate, Gate]:
    """The gates that diffusers' AdaLayerNormZero returns beside the normed stream."""
    return Gate(norm, 1), Gate(norm, 4)


def chunked(attention: int, mlp: int, pieces: int, **source: Any) -> tuple[Gate, Gate]:
    """The two gates among the pieces of one tensor; `source` says where it is, as in `Gate`."""
    return Gate(index=attention, pieces=pieces, **source), Gate(index=mlp, pieces=pieces, **source)


def sandwiched(gates: Gates, norms: tuple[str, str]) -> tuple[Gate, Gate]:
    """Gates behind a norm of what they gate."""
    attention, mlp = (gate or Gate() for gate in gates)
    return replace(attention, norm=norms[0]), replace(mlp, norm=norms[1])


# -- blocks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """What one stream has to itself in a joint block, by path from the block.

    Attributes:
        projection: Takes the heads' values back to the residual width.
        norm: Reads the stream between attention and MLP.
        mlp: Returns the MLP's raw output.
        down: The MLP's last layer, whose input is the neurons; None for a mixture of experts.
        gates: Of the attention's update and of the MLP's.
        before_rope: What returns q and k before rotary embedding; None where there is no norm.
        argument: The block's argument that brings the stream in.
        clamped: Whether the block keeps the stream in the range of float16.
        place: Position of the stream among the norm's arguments.
    """

    projection: str
    norm: str
    mlp: str
    down: str | None
    gates: Gates = (None, None)
    before_rope: tuple[str, str] | None = None
    argument: str = ""
    clamped: bool = False
    place: int = 0


IMAGE = Own("attn.to_out.0", "norm2", "ff", "ff.net.2", before_rope=("attn.norm_q", "attn.norm_k"))
"""The image's parts under the names that most joint blocks of diffusers give them."""

TEXT = Own(
    "attn.to_add_out",
    "norm2_context",
    "ff_context",
    "ff_context.net.2",
    before_rope=("attn.norm_added_q", "attn.norm_added_k"),
)
"""The text's."""


def one_product(_block: Any) -> tuple[str, ...]:
    """The names of the attention products of a block without image prompts."""
    return ("",)


def joint(
    order: Sequence[str],
    own: Mapping[str, Own],
    *,
    returns: Sequence[str] = TXT_IMG,
    attention: str = "attn",
    gives: Sequence[str] = IMG_TXT,
    concepts: Concepts | None = None,
    products: Products = one_product,
    sizes: Sizes | None = None,
    heads_first: bool = False,
    heads_joined: bool = False,
) -> Block:
    """Streams that meet in one attention and have a norm, a projection and an MLP each.

    Args:
        order: The streams along the attention's sequence.
        own: For each stream its own parts.
        returns: The block's outputs in order.
        attention: Path of the attention.
        gives: The attention's outputs in order.
        concepts: How the block takes concept tokens.
        products: The names of the attention products of one block.
        sizes: Number of heads and width of a head, where the module does not tell.
        heads_first: Whether q and k have their head axis before the positions.
        heads_joined: Whether they are normed for all heads side by side.
    """

    def describe(block: nn.Module) -> BlockSpec:
        met = Attention(
            name="attn",
            module=attention,
            queries=tuple(order),
            keys=tuple(order),
            projections={name: Projection(one.projection, (name,)) for name, one in own.items()},
            outputs={name: gives.index(name) for name in own},
            gates={name: one.gates[0] for name, one in own.items() if one.gates[0] is not None},
            before_rope={
                name: norms for name in order if (norms := own[name].before_rope) is not None
            },
            products=products(block),
            sizes=None if sizes is None else sizes(block.get_submodule(attention)),
            heads_first=heads_first,
            heads_joined=heads_joined,
        )
        streams = {
            name: Stream(
                one.argument or ARGUMENTS[name],
                returns.index(name),
                (Mid("resid_mid", one.norm, ("attn",), one.place),),
                clamped=one.clamped,
            )
            for name, one in own.items()
        }
        mlps = {name: Mlp(one.mlp, one.down, one.gates[1]) for name, one in own.items()}
        return BlockSpec(streams, (met,), mlps, concepts=concepts)

    return describe


def parallel(
    order: Sequence[str],
    projection: str,
    gate: Gate,
    *,
    returns: Sequence[str] = TXT_IMG,
    within: str | None = None,
    before_rope: tuple[str, str] | None = ("attn.norm_q", "attn.norm_k"),
    clamped: bool = False,
    concepts: Concepts | None = None,
    products: Products = one_product,
) -> Block:
    """One attention and one MLP beside it on the joined sequence, with one projection for both.

    Args:
        order: The streams along the sequence.
        projection: Takes the heads' values and the neurons, in this order.
        gate: On what it returns.
        returns: The block's outputs in order, where each stream has its own.
        within: The one argument that brings all streams in, where they share it and the output.
        before_rope: What returns q and k before rotary embedding.
        clamped: Whether the block keeps the streams in the range of float16.
        concepts: How the block takes concept tokens.
        products: The names of the attention products of one block.
    """
    order = tuple(order)
    fused, both = Projection(projection, order, fused=True), ("attn", "mlp")

    def stream(name: str) -> Stream:
        if within:
            return Stream(within, None, updates=both, within=order, clamped=clamped)
        return Stream(ARGUMENTS[name], returns.index(name), updates=both, clamped=clamped)

    def describe(block: nn.Module) -> BlockSpec:
        attention = Attention(
            name="attn",
            module="attn",
            queries=order,
            keys=order,
            projections=dict.fromkeys(order, fused),
            gates=dict.fromkeys(order, gate),
            before_rope=dict.fromkeys(order, before_rope) if before_rope else {},
            products=products(block),
        )
        return BlockSpec(
            streams={name: stream(name) for name in order},
            attentions=(attention,),
            mlps={name: Mlp(None, projection, gate) for name in order},
            absent={f"{name}.hook_resid_mid": PARALLEL for name in order},
            concepts=concepts,
        )

    return describe


def sequential(
    order: Sequence[str],
    *,
    within: str = "hidden_states",
    attention: str = "attn",
    norm: str = "norm2",
    mlp: tuple[str, str | None] = ("ff", "ff.net.2"),
    gates: Gates = (None, None),
    sizes: Sizes | None = None,
    gated: bool = False,
    before_rope: tuple[str, str] | None = ("norm_q", "norm_k"),
    beside: bool = False,
    copied: bool = False,
    positions_first: bool = False,
    projection: str = "to_out.0",
    heads_joined: bool = False,
    concepts: Concepts | None = None,
) -> Block:
    """One attention, then one MLP, on one tensor that holds all streams.

    Args:
        order: The streams along the sequence.
        within: The argument that brings them in.
        attention: Path of the attention.
        norm: What reads the tensor between attention and MLP.
        mlp: What returns the MLP's raw output, and its last layer.
        gates: Of the attention's update and of the MLP's.
        sizes: Number of heads and width of a head, where the module does not tell.
        gated: Whether z is changed between the product and the projection.
        before_rope: What returns q and k before rotary embedding, by path from the attention.
        beside: Whether the attention goes into the MLP alone.
        copied: Whether that norm gets a copy of the tensor.
        positions_first: Whether the tensor has axes pos, batch, d_model.
        projection: Takes the heads' values back to the residual width, by path from the attention.
        heads_joined: Whether q and k are normed for all heads side by side.
        concepts: How the block takes concept tokens.
    """
    order = tuple(order)
    norms = before_rope and (f"{attention}.{before_rope[0]}", f"{attention}.{before_rope[1]}")
    mid = Mid("resid_mid", norm, ("attn",), copied=copied, beside=beside)
    shared = order if len(order) > 1 else ()

    def describe(block: nn.Module) -> BlockSpec:
        module = block.get_submodule(attention)
        met = Attention(
            name="attn",
            module=attention,
            queries=order,
            keys=order,
            projections=dict.fromkeys(order, Projection(f"{attention}.{projection}", order)),
            gates={} if gates[0] is None else dict.fromkeys(order, gates[0]),
            heads_joined=heads_joined,
            before_rope=dict.fromkeys(order, norms) if norms else {},
            sizes=None if sizes is None else sizes(module),
            gated=gated,
        )
        return BlockSpec(
            streams={
                name: Stream(within, None, (mid,), within=shared, positions_first=positions_first)
                for name in order
            },
            attentions=(met,),
            mlps={name: Mlp(*mlp, gates[1], shared) for name in order},
            concepts=concepts,
        )

    return describe


def shared(
    mids: Mapping[str, Mid],
    gates: Mapping[str, Gates],
    *,
    calls: Sequence[str] = (),
    before_rope: tuple[str, str] | None = ("attn1.norm_q", "attn1.norm_k"),
    heads_first: bool = True,
    concepts: Concepts | None = None,
    clamped: bool = False,
) -> Block:
    """Two streams with all weights in common but those of the modulation, text first.

    Args:
        mids: What reads each stream between attention and MLP.
        gates: Of each stream.
        calls: The streams in the order in which the MLP is called for each; none where one call
            serves both.
        before_rope: What returns q and k before rotary embedding; None where there is none.
        heads_first: Whether q and k have their head axis before the positions.
        concepts: How the block takes concept tokens.
        clamped: Whether the block keeps the streams in the range of float16.
    """
    down = "ff.net.2"

    def mlp(name: str) -> Mlp:
        if calls:
            return Mlp("ff", down, gates[name][1], call=calls.index(name))
        return Mlp("ff", down, gates[name][1], TXT_IMG)

    def describe(_block: nn.Module) -> BlockSpec:
        attention = Attention(
            name="attn",
            module="attn1",
            queries=TXT_IMG,
            keys=TXT_IMG,
            projections=dict.fromkeys(TXT_IMG, Projection("attn1.to_out.0", TXT_IMG)),
            outputs={"img": 0, "txt": 1},
            gates={name: both[0] for name, both in gates.items() if both[0] is not None},
            before_rope=dict.fromkeys(TXT_IMG, before_rope) if before_rope else {},
            heads_first=heads_first,
        )
        streams = {
            name: Stream(ARGUMENTS[name], IMG_TXT.index(name), (mid,), clamped=clamped)
            for name, mid in mids.items()
        }
        return BlockSpec(
            streams, (attention,), {name: mlp(name) for name in mids}, concepts=concepts
        )

    return describe


def crossed(
    norms: tuple[str, str],
    *,
    mlp: tuple[str, str | None] = ("ff", "ff.net.2"),
    gates: Gates = (None, None),
    cross_gate: Gate | None = None,
    before_rope: tuple[str, str] | None = None,
    heads_joined: bool = False,
    heads_first: bool = False,
    copied: bool = False,
    products: Products = one_product,
    within: str = "hidden_states",
    attentions: tuple[str, str] = ("attn1", "attn2"),
    projection: str = "to_out.0",
    sizes: Sizes | None = None,
    entrance: str | None = None,
    linear: bool = False,
    maps: str = "",
) -> Block:
    """The image alone in the stream: self-attention, cross-attention to the text, MLP.

    Args:
        norms: What reads the stream after each of the two attentions.
        mlp: What returns the MLP's raw output, and its last layer.
        gates: Of self-attention's update and of the MLP's.
        cross_gate: Of cross-attention's update.
        before_rope: What returns q and k of the self-attention before rotary embedding, by path
            from it.
        heads_joined: Whether it does so for all heads side by side.
        heads_first: Whether it does so with the head axis before the positions.
        copied: Whether the norms get copies of the stream.
        products: The names of the products of one block's cross-attention.
        within: The argument that brings the stream in.
        attentions: Paths of the two attentions.
        projection: Takes the heads' values back to the residual width, by path from either.
        sizes: Number of heads and width of a head, where the modules do not tell.
        entrance: What reads the stream first, where the block changes what it is given.
        linear: Whether self-attention is linear.
        maps: What maps the MLP works on.
    """
    to_itself, to_text = attentions

    def attention(
        block: nn.Module, name: str, module: str, keys: str, gate: Gate | None, **more: Any
    ) -> Attention:
        return Attention(
            name=name,
            module=module,
            queries=("img",),
            keys=(keys,),
            projections={"img": Projection(f"{module}.{projection}", ("img",))},
            outputs={"img": None},
            gates={} if gate is None else {"img": gate},
            sizes=None if sizes is None else sizes(block.get_submodule(module)),
            **more,
        )

    norms_of_self = tuple(f"{to_itself}.{path}" for path in before_rope or ())
    rotated = {"img": norms_of_self} if norms_of_self else {}

    mids = (
        Mid("resid_mid_self", norms[0], ("attn",), copied=copied),
        Mid("resid_mid", norms[1], ("cross_attn",), copied=copied),
    )

    def describe(block: nn.Module) -> BlockSpec:
        itself = {
            "before_rope": rotated,
            "heads_joined": heads_joined,
            "heads_first": heads_first,
            "products": () if linear else ("",),
        }
        cross = {"context": "encoder_hidden_states", "products": products(block)}
        return BlockSpec(
            streams={"img": Stream(within, None, mids, entrance=entrance)},
            attentions=(
                attention(block, "attn", to_itself, "img", gates[0], **itself),
                attention(block, "cross_attn", to_text, "txt", cross_gate, **cross),
            ),
            mlps={"img": Mlp(*mlp, gates[1], maps=maps)},
            absent=dict.fromkeys(PRODUCT_POINTS, LINEAR) if linear else {},
        )

    return describe


def mixed(
    keys: Sequence[str],
    *,
    attention: str,
    norm: str,
    mlp: tuple[str, str | None],
    gates: Gates,
    before_rope: Mapping[str, tuple[str | None, str]],
    heads_first: bool = False,
    clamped: bool = False,
) -> Block:
    """The image alone in the stream; its one attention reads image and text, then an MLP.

    Args:
        keys: The streams along the keys.
        attention: Path of the attention.
        norm: What reads the stream between attention and MLP.
        mlp: What returns the MLP's raw output, and its last layer.
        gates: Of the attention's update and of the MLP's.
        before_rope: For each stream what returns q and k before rotary embedding, by path from the
            attention.
        heads_first: Whether it does so with the head axis before the positions.
        clamped: Whether the block keeps the stream in the range of float16.
    """
    met = Attention(
        name="attn",
        module=attention,
        queries=("img",),
        keys=tuple(keys),
        projections={"img": Projection(f"{attention}.to_out.0", ("img",))},
        outputs={"img": None},
        gates={} if gates[0] is None else {"img": gates[0]},
        before_rope={
            name: (None if pair[0] is None else f"{attention}.{pair[0]}", f"{attention}.{pair[1]}")
            for name, pair in before_rope.items()
        },
        heads_first=heads_first,
        context="encoder_hidden_states",
    )
    stream = Stream("hidden_states", None, (Mid("resid_mid", norm, ("attn",)),), clamped=clamped)
    absent = {} if mlp[1] else {"img.mlp.hook_post": EXPERTS}
    return lambda _block: BlockSpec({"img": stream}, (met,), {"img": Mlp(*mlp, gates[1])}, absent)


# -- outside the blocks -----------------------------------------------------------------------


def points(
    latents: Sequence[str],
    *,
    embedding: str | None,
    pooled: str | None = None,
    names: tuple[str, str] = ("hidden_states", "encoder_hidden_states"),
    text_axes: Sequence[str] = ("pos", "d_text"),
) -> Callable[[nn.Module], tuple[ModulePoint, ...]]:
    """Latents, embeddings and the prediction.

    Args:
        latents: Axes of latents and prediction, the batch apart.
        embedding: Path of the module that returns the timestep's embedding; None where that has no
            single place.
        pooled: The denoiser's argument with pooled text.
        names: The denoiser's arguments with the latents and the text.
        text_axes: Axes of the text, the batch apart.
    """
    axes = ("batch", *latents)
    stream = "img" if "pos" in latents else None
    text = ("batch", *text_axes)
    found = (
        ModulePoint("hook_latents", axes, "", argument=(names[0],), stream=stream),
        *([ModulePoint("hook_timestep_emb", ("batch", "d_emb"), embedding)] if embedding else []),
        ModulePoint("hook_text_emb", text, "", argument=(names[1],), stream="txt"),
        *(
            [ModulePoint("hook_pooled_text_emb", ("batch", "d_text"), "", argument=(pooled,))]
            if pooled
            else []
        ),
        ModulePoint("hook_noise_pred", axes, "", output=0, stream=stream),
    )
    return lambda _denoiser: found


def grid_of_ids(argument: str, *, last: int = 2, shifted: bool = False) -> Grid:
    """(height, width) in tokens, from position ids; reference images (another first id) apart.

    Args:
        argument: The denoiser's argument with the ids: token by token (index, height, width, …).
        last: Place of the width among them.
        shifted: Whether the first row and column have other ids than 0.
    """

    def grid(_denoiser: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
        ids = arguments[argument]
        ids = ids[0] if ids.ndim == 3 else ids
        own = ids[ids[:, 0] == ids[0, 0]]
        size = own.amax(0) + 1
        size = size - own.amin(0) if shifted else size
        return (int(size[last - 1]), int(size[last]))

    return grid


def grid_of_latents(argument: str = "hidden_states") -> Grid:
    """(height, width) in patches, of videos (frames, height, width), from the latents' shape."""

    def grid(denoiser: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
        shape = arguments[argument].shape[2:]
        return tuple(size // by for size, by in zip(shape, patches(denoiser.config), strict=False))

    return grid


def native_patches(denoiser: Any, _level: int) -> tuple[int, ...]:
    """(height, width) in patches at the size that the model was made for."""
    config = denoiser.config
    size = config.sample_size
    sides = size if isinstance(size, list | tuple) else (size, size)
    return tuple(side // by for side, by in zip(sides, patches(config)[-2:], strict=True))


def patches(config: Any) -> tuple[int, ...]:
    """Latents of each side that are one token: (height, width), of videos (frames, …) before."""
    patch = config.patch_size
    if not isinstance(patch, int):
        return tuple(patch)
    frames = getattr(config, "patch_size_t", None)
    return (patch, patch) if frames is None else (frames, patch, patch)


def native(*grid: int) -> Callable[[nn.Module, int], tuple[int, ...]]:
    """The grid at the size that the models of a family were made for."""
    return lambda _denoiser, _level: grid
