"""From the description of an architecture to the hook points of one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures.sources import (
    AtModule,
    AtScheduler,
    AttentionContext,
    BeforeRope,
    HeadResult,
    HeadValues,
    Neurons,
    ProductInput,
    ProductOutput,
    ProductWeights,
    Routing,
    StreamBetween,
    StreamEntering,
    StreamLeaving,
    SublayerOutput,
    SublayerUpdate,
)
from diffusion_lens.architectures.spec import Attention, BlockSite, DenoiserSpec, ModulePoint
from diffusion_lens.architectures.validate import validate
from diffusion_lens.errors import UnsupportedModelError
from diffusion_lens.hook_points.point import Absent, HookPoint

NATIVE = "native:"
"""What a name begins with that is a module's own path in diffusers."""

RESIDUAL = ("batch", "pos", "d_model")
PER_HEAD = ("batch", "pos", "head", "d_head")
DEAD_TEXT = "the model throws away the text that leaves its last block"
CHOSEN = "the choice follows from the router's logits, which can be edited (hook_router_logits)"


def find_blocks(denoiser: nn.Module, spec: DenoiserSpec, of: str = "") -> list[BlockSite]:
    """The transformer blocks of a denoiser in order of execution, `of` before their names."""
    found = [
        (path, module)
        for path, module in denoiser.named_modules()
        if type(module).__name__ in spec.blocks
        and not path.startswith((*spec.apart, *spec.refiners))
    ]
    if not found:
        raise UnsupportedModelError(
            f"{type(denoiser).__name__} has no block of a known class "
            f"({', '.join(spec.blocks)}); is it the diffusers class of that name?"
        )
    found.sort(key=lambda item: spec.order(item[0]))
    return [
        BlockSite(
            index=index,
            path=path,
            spec=spec.blocks[type(module).__name__](module),
            level=spec.level(denoiser, path),
            prefix=f"{of}blocks.{index}",
        )
        for index, (path, module) in enumerate(found)
    ]


def find_refiners(denoiser: nn.Module, spec: DenoiserSpec, of: str = "") -> list[BlockSite]:
    """The blocks that refine a stream before the others run, in order of execution."""
    lists = dict(denoiser.named_modules())
    found = [
        (f"{path}.{place}", describe(module))
        for path, describe in spec.refiners.items()
        for place, module in lists[path].named_children()
    ]
    return [
        BlockSite(index, path, described, prefix=f"{of}refiner.{index}", refines=True)
        for index, (path, described) in enumerate(found)
    ]


def find_points(denoiser: nn.Module, spec: DenoiserSpec, of: str = "") -> dict[str, HookPoint]:
    """Every hook point of a denoiser by name: outside the blocks, refiners, then block by block.

    Args:
        denoiser: The denoiser.
        spec: Its description.
        of: What its names begin with; the scheduler's points are among the first denoiser's alone.
    """
    refiners, blocks = find_refiners(denoiser, spec, of), find_blocks(denoiser, spec, of)
    validate(spec, denoiser, [*refiners, *blocks])
    outside = [replace(point, name=of + point.name) for point in spec.outside(denoiser)]
    points = [_at_module(point) for point in outside]
    image = next(point for point in points if point.name == f"{of}hook_noise_pred")
    for which in () if of else ("sample", "guided_pred", "pred_x0"):
        points.append(
            HookPoint(f"hook_{which}", image.axes, AtScheduler(which), "scheduler", stream="img")
        )
    for block in refiners:
        points.extend(block_points(denoiser, block, text_is_dead=False))
    for block in blocks:
        last = block is blocks[-1] and spec.text_ends_in_last_block
        points.extend(block_points(denoiser, block, text_is_dead=last))
    withheld = {of + name for name in spec.withheld}
    return {point.name: point for point in points if point.name not in withheld}


def find_absent(denoiser: nn.Module, spec: DenoiserSpec, of: str = "") -> tuple[Absent, ...]:
    """Names that do not exist in some block, with the reason."""
    absent = {
        f"{block.prefix}.{name}": reason
        for block in (*find_refiners(denoiser, spec, of), *find_blocks(denoiser, spec, of))
        for name, reason in block.spec.absent.items()
    }
    absent |= {of + name: reason for name, reason in spec.withheld.items()}
    return tuple(Absent(name, reason) for name, reason in absent.items())


def native_points(denoiser: nn.Module, pattern: object) -> dict[str, HookPoint]:
    """Every module's output under its path in diffusers, where a `native:` name is asked for.

    The first tensor of an output is meant; only its first axis, the batch, is known.
    """
    if not isinstance(pattern, str) or not pattern.startswith(NATIVE):
        return {}
    return {
        NATIVE + path: _at_module(ModulePoint(NATIVE + path, ("batch",), path, output=0))
        for path, module in denoiser.named_modules()
        if path and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    }


def _at_module(point: Any) -> HookPoint:
    sequences = {"pos": (point.stream,)} if point.stream and "pos" in point.axes else {}
    return HookPoint(
        name=point.name,
        axes=point.axes,
        source=AtModule(point),
        module=point.module or "(denoiser)",
        stream=point.stream,
        sequences=sequences,
        level=point.level,
        skipped=point.skipped,
        held=point.held,
    )


def block_points(
    denoiser: nn.Module, block: BlockSite, *, text_is_dead: bool
) -> Iterator[HookPoint]:
    """Every hook point of one block.

    Args:
        denoiser: The denoiser.
        block: The block.
        text_is_dead: Whether the text that leaves it is thrown away.
    """
    width = _size(denoiser, block.inside(block.spec.attentions[0].module), "query_dim")
    for name, axes, source, module, stream, more in _block_rows(denoiser, block, width):
        feeds_image = isinstance(source, StreamEntering) or (
            isinstance(source, ProductInput | BeforeRope) and source.which in ("k", "v")
        )
        dead = DEAD_TEXT if text_is_dead and stream == "txt" and not feeds_image else None
        if isinstance(source, Routing) and source.which == "choice":
            dead = CHOSEN
        yield HookPoint(
            name=f"{block.prefix}.{name}",
            axes=axes,
            source=source,
            module=block.inside(module) if module else block.path,
            block=None if block.refines else block.index,
            stream=stream,
            level=block.level,
            dead=dead,
            dead_queries=DEAD_TEXT if text_is_dead and isinstance(source, ProductWeights) else None,
            **({"sequences": {"pos": (stream,)}} | more),
        )


def _block_rows(denoiser: nn.Module, block: BlockSite, width: dict[str, int]) -> Iterator[tuple]:
    spec = block.spec
    residual = {"sizes": {"d_model": width.get("query_dim", 0)}} if width else {}
    for name in spec.streams:
        source = StreamEntering(block, name)
        yield f"{name}.hook_resid_pre", RESIDUAL, source, "", name, residual
    for attention in spec.attentions:
        yield from _attention_rows(denoiser, block, attention, residual)
    for name, stream in spec.streams.items():
        for mid in stream.mids:
            source = StreamBetween(block, name, mid)
            yield f"{name}.hook_{mid.name}", RESIDUAL, source, mid.module, name, residual
    for name, mlp in spec.mlps.items():
        neurons = _neurons(denoiser, block, name)
        axes = ("batch", "pos", "d_mlp")
        if mlp.down is not None:
            yield f"{name}.mlp.hook_post", axes, Neurons(block, name), mlp.down, name, neurons
        yield from _routing_rows(denoiser, block, name)
        yield from _sublayer_rows(block, name, "mlp", mlp.module or mlp.down or "", residual)
    for name, stream in spec.streams.items():
        if stream.returned:
            source = StreamLeaving(block, name)
            yield f"{name}.hook_resid_post", RESIDUAL, source, "", name, residual


def _routing_rows(denoiser: nn.Module, block: BlockSite, stream: str) -> Iterator[tuple]:
    router = block.spec.mlps[stream].router
    if router is None:
        return
    axes = {
        "logits": ("router_logits", "batch", "pos", "expert"),
        "weights": ("expert_weights", "batch", "pos", "choice"),
        "choice": ("experts", "batch", "pos", "choice"),
    }
    if router.chooser == "expert":
        axes["choice"] = ("expert_tokens", "batch", "expert", "choice")
    if router.weights is None:
        del axes["weights"]
    logits = router.logits or router.module
    weight = getattr(denoiser.get_submodule(block.inside(logits)), "weight", None)
    sizes = {} if weight is None else {"sizes": {"expert": len(weight)}}
    for which, (name, *found) in axes.items():
        module = logits if which == "logits" else router.module
        apart = {} if "pos" in found else {"sequences": {}}
        source = Routing(block, stream, which)
        yield f"{stream}.mlp.hook_{name}", tuple(found), source, module, stream, sizes | apart


def _attention_rows(
    denoiser: nn.Module, block: BlockSite, attention: Attention, residual: dict
) -> Iterator[tuple]:
    name = attention.name
    heads, d_head = head_sizes(denoiser, block, attention)
    per_head = {"heads": heads, "sizes": {"head": heads, "d_head": d_head}}
    result = {"heads": heads, "sizes": {"head": heads, **residual.get("sizes", {})}}
    if attention.context:
        axes = ("batch", "pos", "d_text")
        source = AttentionContext(block, attention)
        sizes = _size(denoiser, block.inside(attention.module), "cross_attention_dim")
        more = {"sizes": {"d_text": sizes.get("cross_attention_dim")}} if sizes else {}
        text = next(one for one in attention.keys if one not in attention.queries)
        yield f"{name}.hook_context", axes, source, attention.module, text, more
    for stream, modules in attention.before_rope.items():
        for which, module in zip("qk", modules, strict=True):
            if module is None:
                continue
            source = BeforeRope(block, attention, stream, which)
            point = f"{name}.{stream}.hook_{which}_pre_rope"
            yield point, PER_HEAD, source, module, stream, per_head
    for index, product in enumerate(attention.products):
        base = f"{name}.{product}" if product else name
        queries, keys = attention.sequences(product)
        inputs = [] if product else [("q", stream) for stream in attention.queries]
        inputs += [(which, stream) for which in "kv" for stream in keys]
        for which, stream in inputs:
            source = ProductInput(block, attention, stream, which, index)
            point = f"{name}.{stream}.hook_{which}"
            yield point, PER_HEAD, source, attention.module, stream, per_head
        for which, point in (("scores", "attn_scores"), ("pattern", "pattern")):
            axes = ("batch", "head", "query", "key")
            sequences = {"query": queries, "key": keys}
            more = {"heads": heads, "sizes": {"head": heads}, "sequences": sequences}
            source = ProductWeights(block, attention, which, index)
            yield f"{base}.hook_{point}", axes, source, attention.module, None, more
    for stream, projection in attention.projections.items():
        module = projection.module
        values: Any = HeadValues(block, attention, stream)
        if attention.gated:
            main = attention.products.index("")
            values = ProductOutput(block, attention, stream, main)
            module = attention.module
        yield f"{name}.{stream}.hook_z", PER_HEAD, values, module, stream, per_head
        axes = ("batch", "pos", "head", "d_model")
        source = HeadResult(block, attention, stream)
        module = projection.module
        yield f"{name}.{stream}.hook_result", axes, source, module, stream, result
        yield from _sublayer_rows(block, stream, name, attention.module, residual)


def _sublayer_rows(
    block: BlockSite, stream: str, sublayer: str, module: str, residual: dict
) -> Iterator[tuple]:
    out = SublayerOutput(block, stream, sublayer)
    yield f"{stream}.hook_{sublayer}_out", RESIDUAL, out, module, stream, residual
    update = SublayerUpdate(block, stream, sublayer)
    yield f"{stream}.hook_{sublayer}_update", RESIDUAL, update, module, stream, residual


def head_sizes(denoiser: nn.Module, block: BlockSite, attention: Attention) -> tuple[int, int]:
    """Number of heads and width of a head of an attention module."""
    return attention.head_sizes(denoiser.get_submodule(block.inside(attention.module)))


def _size(denoiser: nn.Module, path: str, attribute: str) -> dict[str, int]:
    size = getattr(denoiser.get_submodule(path), attribute, None)
    return {attribute: size} if isinstance(size, int) else {}


def _neurons(denoiser: nn.Module, block: BlockSite, stream: str) -> dict:
    path = block.spec.mlps[stream].down
    down = {} if path is None else _size(denoiser, block.inside(path), "in_features")
    if not down:
        return {}
    shared = 0
    if block.spec.mlps[stream].module is None:
        heads, d_head = head_sizes(denoiser, block, block.spec.attentions[0])
        shared = heads * d_head
    return {"sizes": {"d_mlp": down["in_features"] - shared}}
