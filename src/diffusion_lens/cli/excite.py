"""`diffusion-lens excite`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.border import Index, Positive, Size
from diffusion_lens.cli.checks import within
from diffusion_lens.cli.folders import save_images, save_result
from diffusion_lens.cli.loading import load, settings_of
from diffusion_lens.cli.messages import fail, messages, pipeline_messages
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


def excite(
    model: Model,
    prompt: Prompt,
    words: Annotated[
        list[str], typer.Option(help="A word that must not be neglected. Repeatable.")
    ],
    relevance: Annotated[
        Path | None, typer.Option(help="Head relevance: what `hrv build` wrote.", exists=True)
    ] = None,
    concepts: Annotated[
        list[str] | None, typer.Option(help="The concept of each word, in order. Repeatable.")
    ] = None,
    step_size: Annotated[
        float, typer.Option(help="Of a move of the latents.", callback=within(Positive))
    ] = 20.0,
    max_iter_to_alter: Annotated[
        int,
        typer.Option(help="From which step on latents are left alone.", callback=within(Index)),
    ] = 25,
    refine: Annotated[
        bool, typer.Option(help="Move again and again at the published steps.")
    ] = True,
    resolution: Annotated[
        int | None, typer.Option(help="Shorter side of the maps.", callback=within(Size))
    ] = None,
    seed: Seed = 0,
    num_inference_steps: InferenceSteps = None,
    guidance_scale: Guidance = None,
    setting: Setting = None,
    device: Device = None,
    torch_dtype: Dtype = None,
    out: Out = Path("diffusion_lens_excite"),
) -> None:
    """Generate so that no named word is neglected (Attend-and-Excite), and without."""
    with messages():
        if (relevance is None) != (not concepts):
            fail("--relevance and --concepts go together: give both or none")
        held = load(model, device=device, torch_dtype=torch_dtype)

        from diffusion_lens.analyses import attend_and_excite

        more: dict[str, Any] = {} if refine else {"thresholds": {}}
        if relevance is not None:
            from diffusion_lens.cli.hrv.saved import loaded

            more["relevance"] = loaded(relevance)
        settings = settings_of(
            model,
            held.pipe,
            setting,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        with pipeline_messages(held):
            result = attend_and_excite(
                held,
                prompt,
                words=words,
                concepts=concepts,
                step_size=step_size,
                max_iter_to_alter=max_iter_to_alter,
                resolution=resolution,
                seed=seed,
                **more,
                **settings,
            )
            plain = held(prompt, seed=seed, **settings)
        save_images(plain.images, out, name="plain")
        save_images(result.images, out, name="excited")
        rows = [
            {"step": step, "loss": float(loss)}
            for step, loss in zip(result.steps, result.losses, strict=True)
        ]
        from diffusion_lens import viz

        pictures = viz.image_strip([plain.images[0], result.image], captions=["plain", "excited"])
        save_result(out, result, f"Excited: {prompt}", pictures, result.plot(), rows=rows)
