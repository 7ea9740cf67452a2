"""`diffusion-lens hrv steer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.border import Positive
from diffusion_lens.cli.checks import within
from diffusion_lens.cli.folders import save_images
from diffusion_lens.cli.hrv.saved import Relevance, loaded
from diffusion_lens.cli.loading import load, settings_of, whole_numbers
from diffusion_lens.cli.messages import fail, messages, pipeline_messages
from diffusion_lens.cli.options import (
    Device,
    Dtype,
    Guidance,
    InferenceSteps,
    Model,
    Out,
    Seed,
    Setting,
    Steps,
)


def steer(
    model: Model,
    relevance: Relevance,
    prompt: Annotated[str, typer.Argument(help="What to generate.")],
    word: Annotated[str, typer.Option(help="A word or phrase of the prompt.")],
    desired: Annotated[str, typer.Option(help="The concept that the word should mean.")],
    undesired: Annotated[
        str | None, typer.Option(help="The concept that it should not mean.")
    ] = None,
    clamp: Annotated[
        float | None,
        typer.Option(help="Largest element of a vector.", callback=within(Positive)),
    ] = None,
    steps: Steps = None,
    seed: Seed = 0,
    num_inference_steps: InferenceSteps = None,
    guidance_scale: Guidance = None,
    setting: Setting = None,
    device: Device = None,
    torch_dtype: Dtype = None,
    out: Out = Path("diffusion_lens_steer"),
) -> None:
    """Generate with a word turned towards one of its meanings, and without."""
    with messages():
        if desired == undesired:
            fail(f"--desired and --undesired are both {desired!r}; give two concepts, or one")
        vectors = loaded(relevance)
        held = load(model, device=device, torch_dtype=torch_dtype)

        from diffusion_lens.analyses import steer_word

        settings = settings_of(
            model,
            held.pipe,
            setting,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        with pipeline_messages(held):
            steered = steer_word(
                held,
                prompt,
                word,
                vectors,
                desired=desired,
                undesired=undesired,
                clamp=clamp,
                steps=whole_numbers(steps, "steps"),
                seed=seed,
                **settings,
            )
            plain = held(prompt, seed=seed, **settings)
        save_images(plain.images, out, name="plain")
        save_images(steered.images, out, name="steered")
        _report_steering(out, vectors, prompt, plain, steered)


def _report_steering(out: Path, vectors: Any, prompt: str, plain: Any, steered: Any) -> None:
    from diffusion_lens.app.report import Report
    from diffusion_lens.app.report_parts import Code, Images

    record = json.dumps(steered.made_by.as_dict(), indent=1, ensure_ascii=False)
    (out / "run.json").write_text(record + "\n", encoding="utf-8")
    report = Report(f"Steering: {prompt}")
    pictures = [*plain.images, *steered.images]
    captions = ["plain"] * len(plain.images) + ["steered"] * len(steered.images)
    report.add("Images", Images(pictures, captions))
    report.add("What made it", f"Cite: {vectors.citation}.", Code(record))
    typer.echo(str(report.write(out / "report.html")))
