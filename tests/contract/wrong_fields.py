"""Right descriptions with one wrong field each."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false, reportOperatorIssue=false

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from diffusion_lens.architectures.spec import Attention, BlockSpec, DenoiserSpec, Mlp, Stream

Change = Callable[[DenoiserSpec], DenoiserSpec]
DOUBLE, SINGLE = 0, 1
"""Place of a block class in the descriptions of these families."""


def in_block(kind: int, change: Callable[[BlockSpec], BlockSpec]) -> Change:
    """A change of one block class."""

    def changed(spec: DenoiserSpec) -> DenoiserSpec:
        name = list(spec.blocks)[kind]
        original = spec.blocks[name]
        return replace(spec, blocks={**spec.blocks, name: lambda block: change(original(block))})

    return changed


def attention(change: Callable[[Attention], dict[str, Any]], kind: int = DOUBLE) -> Change:
    def changed(spec: BlockSpec) -> BlockSpec:
        (one,) = spec.attentions
        return replace(spec, attentions=(replace(one, **change(one)),))

    return in_block(kind, changed)


def stream(change: Callable[[Stream], dict[str, Any]], kind: int = DOUBLE) -> Change:
    def changed(spec: BlockSpec) -> BlockSpec:
        img = spec.streams["img"]
        return replace(spec, streams={**spec.streams, "img": replace(img, **change(img))})

    return in_block(kind, changed)


def mlp(change: Callable[[Mapping[str, Mlp]], dict[str, Any]]) -> Change:
    def changed(spec: BlockSpec) -> BlockSpec:
        img = replace(spec.mlps["img"], **change(spec.mlps))
        return replace(spec, mlps={**spec.mlps, "img": img})

    return in_block(DOUBLE, changed)


def swapped(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"img": given["txt"], "txt": given["img"]}


def at(point: str, **changes: Any) -> Change:
    """A change of a point outside the blocks."""

    def changed(spec: DenoiserSpec) -> DenoiserSpec:
        def outside(denoiser: Any) -> tuple[Any, ...]:
            found = spec.outside(denoiser)
            assert any(one.name == point for one in found)
            return tuple(replace(one, **changes) if one.name == point else one for one in found)

        return replace(spec, outside=outside)

    return changed


def up_layer(down: str) -> str:
    """The first layer of the MLP whose last one is given."""
    return down.replace("net.2", "net.0.proj").replace("linear_out", "linear_in")


WRONG: dict[str, Change] = {
    "joint order": attention(lambda a: {"queries": a.queries[::-1], "keys": a.keys[::-1]}),
    "order of the keys": attention(lambda a: {"keys": a.keys[::-1]}),
    "joint order of single blocks": attention(
        lambda a: {"queries": a.queries[::-1], "keys": a.keys[::-1]}, SINGLE
    ),
    "gate of the MLP on the attention": in_block(
        DOUBLE,
        lambda s: replace(
            s,
            attentions=tuple(
                replace(a, gates={**a.gates, "img": s.mlps["img"].gate}) for a in s.attentions
            ),
        ),
    ),
    "no gate on the attention": attention(lambda a: {"gates": {"txt": a.gates["txt"]}}),
    "no gate on the MLP": mlp(lambda _: {"gate": None}),
    "the text's gate on the MLP": mlp(lambda m: {"gate": m["txt"].gate}),
    "middle at the MLP": stream(lambda s: {"mids": (replace(s.mids[0], module="ff"),)}),
    "middle left out": stream(lambda _: {"mids": (), "updates": ("attn", "mlp")}),
    "middle left out, update too": stream(lambda _: {"mids": ()}),
    "projections exchanged": attention(lambda a: {"projections": swapped(a.projections)}),
    "outputs of the attention exchanged": attention(lambda a: {"outputs": swapped(a.outputs)}),
    "outputs of the block exchanged": in_block(
        DOUBLE,
        lambda s: replace(
            s,
            streams={name: replace(one, output=1 - one.output) for name, one in s.streams.items()},
        ),
    ),
    "q and k before rope exchanged": attention(
        lambda a: {"before_rope": {name: both[::-1] for name, both in a.before_rope.items()}}
    ),
    "streams before rope exchanged": attention(lambda a: {"before_rope": swapped(a.before_rope)}),
    "q before rope in place of k": attention(
        lambda a: {"before_rope": {**a.before_rope, "img": (a.before_rope["img"][0],) * 2}}
    ),
    "up layer in place of down": mlp(lambda m: {"down": up_layer(m["img"].down)}),
    "the text's MLP": mlp(lambda m: {"module": m["txt"].module, "down": m["txt"].down}),
    "single blocks not fused": attention(
        lambda a: {
            "projections": {n: replace(one, fused=False) for n, one in a.projections.items()}
        },
        SINGLE,
    ),
    "updates without the MLP": stream(lambda _: {"updates": ("attn",)}, SINGLE),
    "text lives on": lambda spec: replace(spec, text_ends_in_last_block=False),
    "single blocks first": lambda spec: replace(
        spec, order=lambda path: (int(not path.startswith("single_")),)
    ),
    "single blocks left out": lambda spec: replace(
        spec, blocks={list(spec.blocks)[DOUBLE]: list(spec.blocks.values())[DOUBLE]}
    ),
    "latents and text exchanged": lambda spec: replace(spec, latents=spec.text, text=spec.latents),
    "timestep's embedding is the output": at("hook_timestep_emb", module="norm_out"),
    "prediction is the text's embedding": at(
        "hook_noise_pred", module="context_embedder", output=None
    ),
    "no such module": mlp(lambda _: {"down": "ff.net.3"}),
    "no such argument": stream(lambda _: {"argument": "hidden_state"}),
}
