"""`diffusion-lens edit`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.border import Between, Fraction, Index, Seed
from diffusion_lens.cli.checks import one_of, refuse_unread, within
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Finding
from diffusion_lens.cli.given_image import given_image
from diffusion_lens.cli.loading import listed_numbers
from diffusion_lens.cli.messages import fail, pipeline_messages
from diffusion_lens.cli.options import (
    Blocks,
    Image,
)

METHODS = ("p2p", "p2p-hrv", "masactrl", "pnp", "fpe", "sdedit", "stable-flow")
KINDS = ("replace", "refine", "reweight")
P2P = ("p2p", "p2p-hrv")
READ_BY = {
    "edit": P2P,
    "cross_replace": P2P,
    "self_replace": (*P2P, "fpe"),
    "reweight": P2P,
    "self_max_tokens": P2P,
    "relevance": ("p2p-hrv",),
    "concept": ("p2p-hrv",),
    "strength": ("sdedit",),
    "blocks": ("masactrl", "pnp", "fpe", "stable-flow"),
}
"""Which methods read an option; the others refuse it."""
LOST = 0.1
"""An inversion's error above which the image is another one."""
Source = Annotated[str, typer.Argument(help="What the source image shows.")]
SeedOfMethod = Annotated[
    int | None, typer.Option("--seed", help="Of the noise; 0 by default.", callback=within(Seed))
]
Targets = Annotated[list[str], typer.Argument(help="What it is to show; several are edited apart.")]


@command()
def edit(
    call: Call,
    source: Source,
    target: Targets,
    method: Annotated[
        str, typer.Option(help=", ".join(METHODS), callback=one_of(*METHODS))
    ] = "p2p",
    kind: Annotated[
        str | None,
        typer.Option(
            "--edit",
            help=f"p2p: {' (the default), '.join(KINDS[:2])} or {KINDS[2]}.",
            callback=one_of(*KINDS),
        ),
    ] = None,
    cross_replace: Annotated[
        float | None,
        typer.Option(
            help="p2p: share of the steps with the source's attention to text; 0.8 by default.",
            callback=within(Fraction),
        ),
    ] = None,
    self_replace: Annotated[
        float | None,
        typer.Option(
            help="p2p, fpe: share with its attention to itself; the method's own.",
            callback=within(Fraction),
        ),
    ] = None,
    reweight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD=FACTOR", help="p2p: the attention to a word times a factor. Repeatable."
        ),
    ] = None,
    self_max_tokens: Annotated[
        int | None,
        typer.Option(
            help="p2p: leave self-attention over more positions alone; 256 by default.",
            callback=within(Index),
        ),
    ] = None,
    relevance: Annotated[
        Path | None, typer.Option(help="p2p-hrv: what `hrv build` wrote.", exists=True)
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="p2p-hrv: the concept of the words that change.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="sdedit: how far the image is noised, in (0, 1]; 0.5 by default.",
            callback=within(Annotated[float, Between(0, 1, open_low=True)]),
        ),
    ] = None,
    blocks: Blocks = None,
    image: Image = None,
    seed: SeedOfMethod = None,
) -> Finding:
    """Edit an image by editing its prompt. A given --image is inverted first (or noised)."""
    given = {
        "edit": kind,
        "cross_replace": cross_replace,
        "self_replace": self_replace,
        "reweight": None if reweight is None else dict(map(_weight, reweight)),
        "self_max_tokens": self_max_tokens,
        "relevance": relevance,
        "concept": concept,
        "strength": strength,
        "blocks": listed_numbers(blocks, "blocks"),
    }
    chosen = _chosen(method, given)
    drawn = image is None or method == "sdedit"
    refuse_unread({"--seed": seed}, unless="--method sdedit or without --image", read=drawn)
    real = None if image is None else given_image(call, image)
    start: Any = source if real is None else real
    if real is not None and method != "sdedit":
        chosen["latents"], start = _inverted(call, source, real), source
    result = call.run(_analysis(method), start, target, seed=seed or 0, **chosen)
    return Finding(
        f"{method}: {source}",
        result,
        [result.plot()],
        rows=[{"prompt": one, "image": at} for at, one in enumerate((source, *target))],
        pictures={"image": result.images} | ({} if real is None else {"given": [real]}),
    )


def _weight(given: str) -> tuple[str, float]:
    """A word and its factor."""
    word, _, text = given.rpartition("=")
    factor = None
    with contextlib.suppress(ValueError):
        factor = float(text)
    if factor is None or not word.strip():
        fail(f"--reweight {given!r} is not of the form WORD=FACTOR, such as red=2")
    return word.strip(), factor


def _analysis(method: str) -> Any:
    from diffusion_lens import analyses

    names = {
        "p2p": "prompt_to_prompt",
        "p2p-hrv": "prompt_to_prompt",
        "fpe": "free_prompt_editing",
        "pnp": "plug_and_play",
        "stable-flow": "stable_flow",
    }
    return getattr(analyses, names.get(method, method))


def _chosen(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a method's analysis among the options; what was not given is its own."""
    for name, methods in READ_BY.items():
        option = f"--{name.replace('_', '-')}"
        told = f"--method {' or '.join(methods)}"
        refuse_unread({option: given[name]}, unless=told, read=method in methods)
    chosen = {name: value for name, value in given.items() if value is not None}
    if method == "stable-flow" and "blocks" not in chosen:
        fail("--method stable-flow needs --blocks, the vital blocks; see `vital_blocks`")
    if method != "p2p-hrv":
        return chosen
    if "relevance" not in chosen or "concept" not in chosen:
        fail("--method p2p-hrv needs --relevance (what `hrv build` wrote) and --concept")
    from diffusion_lens.cli.hrv.saved import loaded

    return {"self_replace": 0.9, **chosen, "relevance": loaded(chosen["relevance"])}


def _inverted(call: Call, source: str, image: Any) -> Any:
    """The noise that draws a given image."""
    from diffusion_lens.analyses import invert

    unguided = {
        name: value
        for name, value in call.settings.items()
        if name not in ("guidance_scale", "true_cfg_scale", "negative_prompt")
    }
    with pipeline_messages(call.model):
        found = invert(call.model, image, source, **unguided)
    typer.echo(repr(found))
    if found.image_error - found.autoencoder_error > LOST:
        typer.echo(
            f"Warning: the image does not come back (error {found.image_error:.2f}, in [0, 1]), so "
            "that another one is edited; raise --num-inference-steps",
            err=True,
        )
    return found.latents
