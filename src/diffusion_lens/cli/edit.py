"""`diffusion-lens edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.cli.folders import save_images, save_result
from diffusion_lens.cli.loading import listed_numbers, load, settings_of
from diffusion_lens.cli.messages import fail, messages, pipeline_messages
from diffusion_lens.cli.options import (
    Blocks,
    Device,
    Dtype,
    Guidance,
    Image,
    InferenceSteps,
    Model,
    Out,
    Seed,
    Setting,
)

METHODS = ("p2p", "p2p-hrv", "masactrl", "pnp", "fpe", "sdedit", "stable-flow")
Source = Annotated[str, typer.Argument(help="What the source image shows.")]
Targets = Annotated[list[str], typer.Argument(help="What it is to show; several are edited apart.")]


def edit(
    model: Model,
    source: Source,
    target: Targets,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "p2p",
    kind: Annotated[
        str, typer.Option("--edit", help="p2p: replace, refine or reweight.")
    ] = "replace",
    cross_replace: Annotated[
        float, typer.Option(help="p2p: share of the steps with the source's attention to text.")
    ] = 0.8,
    self_replace: Annotated[
        float | None,
        typer.Option(help="p2p, fpe: share with its attention to itself; the method's own."),
    ] = None,
    self_max_tokens: Annotated[
        int, typer.Option(help="p2p: leave self-attention over more positions alone.")
    ] = 256,
    relevance: Annotated[
        Path | None, typer.Option(help="p2p-hrv: what `hrv build` wrote.", exists=True)
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="p2p-hrv: the concept of the words that change.")
    ] = None,
    strength: Annotated[float, typer.Option(help="sdedit: how far the image is noised.")] = 0.5,
    blocks: Blocks = None,
    image: Image = None,
    seed: Seed = 0,
    num_inference_steps: InferenceSteps = None,
    guidance_scale: Guidance = None,
    setting: Setting = None,
    device: Device = None,
    torch_dtype: Dtype = None,
    out: Out = Path("diffusion_lens_edit"),
) -> None:
    """Edit an image by editing its prompt. A given --image is inverted first (or noised)."""
    with messages():
        if method not in METHODS:
            fail(f"--method {method!r} is none of {', '.join(METHODS)}")
        options = {
            "p2p": {
                "edit": kind,
                "cross_replace": cross_replace,
                "self_max_tokens": self_max_tokens,
            },
            "sdedit": {"strength": strength},
        }
        chosen: dict[str, Any] = dict(options.get(method.removesuffix("-hrv"), {}))
        if method == "p2p-hrv":
            chosen |= _relevance(relevance, concept)
            chosen["self_replace"] = 0.9
        if self_replace is not None and method in ("p2p", "p2p-hrv", "fpe"):
            chosen["self_replace"] = self_replace
        if blocks is not None:
            chosen["blocks"] = listed_numbers(blocks, "blocks")
        if method == "stable-flow" and blocks is None:
            fail("--method stable-flow needs --blocks, the vital blocks; see `vital_blocks`")
        held = load(model, device=device, torch_dtype=torch_dtype)
        settings = settings_of(
            model,
            held.pipe,
            setting,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        with pipeline_messages(held):
            start: Any = source
            if image is not None:
                start, settings = _start(held, method, source, image, settings)
            result = _analysis(method)(held, start, target, seed=seed, **chosen, **settings)
        save_images(result.images, out)
        rows = [{"prompt": one, "image": at} for at, one in enumerate((source, *target))]
        save_result(out, result, f"{method}: {source}", result.plot(), rows=rows)


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


def _relevance(folder: Path | None, concept: str | None) -> dict[str, Any]:
    if folder is None or concept is None:
        fail("--method p2p-hrv needs --relevance (what `hrv build` wrote) and --concept")
    from diffusion_lens.cli.hrv.saved import loaded

    return {"relevance": loaded(folder), "concept": concept}


def _start(
    held: Any, method: str, source: str, image: Path, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What an edit of a given image starts from: the image, or the noise that draws it."""
    from PIL import Image as Pictures

    from diffusion_lens.analyses import invert

    given = Pictures.open(image).convert("RGB")
    if method == "sdedit":
        return given, settings
    unguided = {
        name: value
        for name, value in settings.items()
        if name not in ("guidance_scale", "true_cfg_scale", "negative_prompt")
    }
    found = invert(held, given, source, **unguided)
    typer.echo(repr(found))
    return source, {**settings, "latents": found.latents}
