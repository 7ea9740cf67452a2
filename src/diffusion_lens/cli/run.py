"""`diffusion-lens run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffusion_lens.cli.checks import refuse_unread
from diffusion_lens.cli.folders import save_images
from diffusion_lens.cli.loading import load, settings_of
from diffusion_lens.cli.messages import messages, pipeline_messages
from diffusion_lens.cli.options import (
    Device,
    Dtype,
    Guidance,
    InferenceSteps,
    Model,
    Out,
    Prompt,
    Seed,
    Setting,
)


def run(
    model: Model,
    prompt: Prompt,
    out: Out = Path("diffusion_lens_run"),
    seed: Seed = 0,
    num_inference_steps: InferenceSteps = None,
    guidance_scale: Guidance = None,
    setting: Setting = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="Keep this hook point; a name, a pattern or a Site's text form. Repeatable.",
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(help="Which guidance branch to keep: cond (the default), uncond or all."),
    ] = None,
    reduce: Annotated[
        str | None, typer.Option(help="Keep the mean, sum or last over steps, not every step.")
    ] = None,
    device: Device = None,
    torch_dtype: Dtype = None,
) -> None:
    """Generate an image, and keep what made it (run.json) and hook points (--cache)."""
    with messages():
        of_cache = {"--branch": branch, "--reduce": reduce}
        refuse_unread(of_cache, unless="--cache", read=bool(cache))
        held = load(model, device=device, torch_dtype=torch_dtype)
        settings = settings_of(
            model,
            held.pipe,
            setting,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        with pipeline_messages(held):
            if cache:
                keep = {
                    "names_filter": cache,
                    "branch": "cond" if branch is None else branch,
                    "reduce": reduce,
                }
                output, kept = held.run_with_cache(prompt, seed=seed, **keep, **settings)
                typer.echo(f"{kept!r} is in {kept.save(out / 'cache')}")
            else:
                output = held(prompt, seed=seed, **settings)
        images = save_images(output.images, out)
        record = {**output.made_by.as_dict(), "images": [path.name for path in images]}
        (out / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"{', '.join(map(str, images))}; what made it is in {out / 'run.json'}")
