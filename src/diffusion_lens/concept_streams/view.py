"""A block as concept tokens see it: the text stream's modules under the name `concept`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures.catalogue import PER_HEAD, block_points, head_sizes
from diffusion_lens.architectures.sources import (
    BeforeRope,
    ProductInput,
    ProductOutput,
    ProductWeights,
)
from diffusion_lens.architectures.spec import Attention, BlockSite, BlockSpec
from diffusion_lens.hook_points.point import HookPoint

CONCEPT = "concept"
ATTENDED = {"concepts": CONCEPT, "image": "img"}
"""What concepts may attend to, and the stream that each is."""

IMAGE_PRODUCT = 1
IMAGE_ASKS = "img_with_concepts"
"""The second product of the concepts' pass, by number and name: the image's queries over image and
concepts in place of image and text."""

THROWN_AWAY = "no image token of a run sees a concept; what this product gives is only read"


def called(stream: str) -> str:
    """A stream's name in the pass of the concepts."""
    return CONCEPT if stream == "txt" else stream


def concept_view(block: BlockSite, *, attend: Sequence[str]) -> BlockSite:
    """The same block with concept tokens in place of its text.

    Args:
        block: A block whose spec has `concepts`.
        attend: What the concepts' queries attend to: `"concepts"`, `"image"`, both or none.
    """
    spec = block.spec
    assert spec.concepts is not None
    attention = _view_of_attention(spec.attention(spec.concepts.attention), attend)
    return replace(
        block,
        spec=BlockSpec(
            streams={
                called(name): replace(stream, within=tuple(map(called, stream.within)))
                for name, stream in spec.streams.items()
            },
            attentions=(attention,),
            mlps={
                called(name): replace(mlp, streams=tuple(map(called, mlp.streams)))
                for name, mlp in spec.mlps.items()
            },
            concepts=spec.concepts,
        ),
    )


def _view_of_attention(attention: Attention, attend: Sequence[str]) -> Attention:
    def renamed(values: Any) -> dict[str, Any]:
        return {called(name): value for name, value in values.items()}

    attended = [ATTENDED[what] for what in attend]
    projections = {
        name: replace(projection, streams=tuple(map(called, projection.streams)))
        for name, projection in renamed(attention.projections).items()
    }
    return replace(
        attention,
        queries=(CONCEPT,),
        keys=tuple(name for name in map(called, attention.keys) if name in attended),
        projections=projections,
        outputs=renamed(attention.outputs),
        gates=renamed(attention.gates),
        before_rope=renamed(attention.before_rope),
        products=("",),
    )


def find_concept_points(
    denoiser: nn.Module, views: Mapping[BlockSite, BlockSite], *, image_queries: bool = False
) -> dict[str, HookPoint]:
    """Every hook point of the concept tokens by name, block by block.

    Args:
        denoiser: The denoiser.
        views: Each block as it is, and as concepts see it.
        image_queries: Whether the image's queries over image and concepts have points as well.
    """
    found = [point for view in views.values() for point in _points(denoiser, view)]
    if image_queries:
        for block, view in views.items():
            found += _image_points(denoiser, block, view)
    return {point.name: point for point in found}


def joined(block: BlockSite) -> tuple[str, ...]:
    """Concepts and image in the order in which a block joins text and image."""
    assert block.spec.concepts is not None
    return tuple(map(called, block.spec.attention(block.spec.concepts.attention).keys))


def _image_points(denoiser: nn.Module, block: BlockSite, view: BlockSite) -> Iterator[HookPoint]:
    (attention,) = view.spec.attentions
    heads, d_head = head_sizes(denoiser, view, attention)
    rows: list[tuple[str, tuple[str, ...], Any, dict[str, tuple[str, ...]], dict[str, int]]] = [
        (
            point,
            ("batch", "head", "query", "key"),
            ProductWeights(view, attention, which, IMAGE_PRODUCT),
            {"query": ("img",), "key": joined(block)},
            {"head": heads},
        )
        for which, point in (("scores", "attn_scores"), ("pattern", "pattern"))
    ]
    values = ProductOutput(view, attention, "img", IMAGE_PRODUCT)
    rows.append(("z", PER_HEAD, values, {"pos": ("img",)}, {"head": heads, "d_head": d_head}))
    for point, axes, source, sequences, sizes in rows:
        yield HookPoint(
            name=f"{view.prefix}.{attention.name}.{IMAGE_ASKS}.hook_{point}",
            axes=axes,
            source=source,
            module=view.inside(attention.module),
            block=view.index,
            stream="img" if point == "z" else None,
            heads=heads,
            sequences=sequences,
            sizes=sizes,
            level=view.level,
            dead=THROWN_AWAY,
        )


def _points(denoiser: nn.Module, view: BlockSite) -> Iterator[HookPoint]:
    (attention,) = view.spec.attentions
    for point in block_points(denoiser, view, text_is_dead=False):
        source = point.source
        if isinstance(source, ProductWeights) and attention.keys:
            _, _, last = point.name.rpartition(".")
            name = f"{view.prefix}.{attention.name}.{CONCEPT}.{last}"
            yield replace(point, name=name)
        elif point.stream == CONCEPT and _is_used(source, attention):
            yield point
    if not attention.keys:
        source = ProductInput(view, attention, CONCEPT, "v")
        yield _at_product(denoiser, view, attention, "v", source)
    if CONCEPT not in attention.projections:
        source = ProductOutput(view, attention, CONCEPT)
        yield _at_product(denoiser, view, attention, "z", source)


def _is_used(source: Any, attention: Attention) -> bool:
    """Whether a query or key of the concepts has a part in their attention."""
    if isinstance(source, ProductInput | BeforeRope):
        return source.which == "v" or bool(
            attention.keys if source.which == "q" else CONCEPT in attention.keys
        )
    return True


def _at_product(
    denoiser: nn.Module, view: BlockSite, attention: Attention, which: str, source: Any
) -> HookPoint:
    heads, d_head = head_sizes(denoiser, view, attention)
    return HookPoint(
        name=f"{view.prefix}.{attention.name}.{CONCEPT}.hook_{which}",
        axes=PER_HEAD,
        source=source,
        module=view.inside(attention.module),
        block=view.index,
        stream=CONCEPT,
        heads=heads,
        sequences={"pos": (CONCEPT,)},
        sizes={"head": heads, "d_head": d_head},
        level=view.level,
    )
