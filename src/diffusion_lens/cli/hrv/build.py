"""`diffusion-lens hrv build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.cli.folders import save_result
from diffusion_lens.cli.loading import is_toy, load, settings_of, whole_numbers
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


def build(
    model: Model,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, a prompt in each line. Toys have their own.", exists=True),
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option(help="JSON file, concept to words. The paper's 34 by default.", exists=True),
    ] = None,
    include_start_token: Annotated[bool, typer.Option(help="In the softmax.")] = True,
    vote: Annotated[str, typer.Option(help="argmax, margin or strength.")] = "argmax",
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 1,
    steps: Steps = None,
    per_step: Annotated[bool, typer.Option(help="Keep votes of every step apart.")] = True,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder to go on from.")] = None,
    num_inference_steps: InferenceSteps = None,
    guidance_scale: Guidance = None,
    setting: Setting = None,
    device: Device = None,
    torch_dtype: Dtype = None,
    out: Out = Path("diffusion_lens_hrv"),
) -> None:
    """Count which concept each head attends to most."""
    with messages():
        listed = _prompts(model, prompts)
        held = load(model, device=device, torch_dtype=torch_dtype)

        from diffusion_lens.analyses import head_relevance

        settings = settings_of(
            model,
            held.pipe,
            setting,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        with pipeline_messages(held):
            relevance = head_relevance(
                held,
                listed,
                concepts=_concepts(model, concepts),
                include_start_token=include_start_token,
                vote=vote,
                seed=seed,
                batch_size=batch_size,
                steps=whole_numbers(steps, "steps"),
                per_step=per_step,
                checkpoint=checkpoint,
                **settings,
            )
        save_result(out, relevance, "Head relevance", relevance.plot(), rows=_vectors(relevance))


def _prompts(model: str, file: Path | None) -> list[str]:
    if file is not None:
        lines = file.read_text(encoding="utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip()]
        return found or fail(f"{file} holds no prompt; write one in each line")
    if not is_toy(model):
        fail("give --prompts FILE, a prompt in each line; the paper takes 2,100, many and varied")
    from diffusion_lens import toys

    return [one.caption for one in toys.test_captions()][::5]


def _concepts(model: str, file: Path | None) -> Any:
    if file is not None:
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            fail(f"{file} is no JSON: {error}")
    if is_toy(model):
        from diffusion_lens.toys.shapes.world import CONCEPTS

        return CONCEPTS
    from diffusion_lens.analyses import PUBLISHED_CONCEPTS

    return PUBLISHED_CONCEPTS


def _vectors(relevance: Any) -> list[dict[str, Any]]:
    return [
        {"concept": concept, "block": head.block, "head": head.head, "relevance": float(value)}
        for concept, vector in zip(relevance.concepts, relevance.vectors, strict=True)
        for head, value in zip(relevance.heads, vector, strict=True)
    ]
