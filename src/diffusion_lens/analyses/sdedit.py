"""SDEdit: an image noised part of the way and drawn again for another prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from PIL import Image

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.edited_images import EditedImages, edited_run, rows_of
from diffusion_lens.authoring import DEFAULT_SEED, call_settings, fitted
from diffusion_lens.border import Between, PipelineSetting, public
from diffusion_lens.errors import RunError, UnsupportedModelError

CITATION = (
    "Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential "
    "Equations, ICLR 2022, arXiv 2108.01073"
)
PICTURE_CHANNELS = 3


@public
def sdedit(
    model: HookedDiffusion,
    source: Image.Image | str | Sequence[str] | Run,
    targets: str | Sequence[str],
    *,
    strength: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> EditedImages:
    """Noise an image part of the way and draw it again for other prompts.

    The simplest edit, and the one to beat: what survives the noise stays, be it wanted or not, and
    what the noise has covered is drawn anew.

    Args:
        model: Any model for which diffusers has an image-to-image pipeline.
        source: The image, resized to a size that the model takes, with a warning, or to `height`
            and `width` of the settings; or a prompt, whose image is generated first, with the same
            seed.
        targets: A target prompt or several.
        strength: How far: 1 covers the image whole. Comparisons take 0.5 and 0.7.
        seed: Noise of all rows.
        **settings: Arguments of the pipelines' own calls.

    Returns:
        The source image, then one for each target.

    Raises:
        RunError: If several sources or seeds are given, or the image is too small or has other
            channels than the model takes.
        UnsupportedModelError: If there is no image-to-image pipeline.

    Source: arXiv 2108.01073, section 3; noised latents as in diffusers' image-to-image pipelines.
    """
    _refuse_no_step(model, settings.get("num_inference_steps"), strength)
    name = "image" if isinstance(source, Image.Image) else source
    run = edited_run(name, targets, seed=seed, settings=settings)
    if isinstance(source, Image.Image):
        sides = {side: run.settings.get(side) for side in ("height", "width")}
        image = fitted(model, source, **sides)
    else:
        image = model(rows_of(run, 0, 1).with_(output_type="pil")).image
    redraw = _image_to_image(model)
    encoded = model.encode_image(image)  # which refuses what the pipeline would fail at
    prompts = run.prompts[1:]
    drop = ("latents", "height", "width")
    edits = rows_of(run, 1, len(run.prompts)).settings
    given = {key: value for key, value in edits.items() if key not in drop}
    taken = {"height", "width"}.intersection(_parameters(redraw))
    given |= {side: getattr(image, side) for side in taken}
    out = redraw(prompts, seed=run.seed, image=[image] * len(prompts), strength=strength, **given)
    assert out.latents is not None
    return EditedImages(
        source=run.prompts[0],
        targets=tuple(prompts),
        images=None if out.images is None else [image, *out.images],
        latents=torch.cat([encoded.to(out.latents), out.latents]),
        method="sdedit",
        made_by={**out.made_by.as_dict(), "strength": strength},
        citation=CITATION,
    )


def _refuse_no_step(model: HookedDiffusion, steps: int | None, strength: float) -> None:
    """Refuse a share of the steps that is none: pipelines of U-Nets round down, and end in torch.

    Raises:
        RunError: If it is.
    """
    if steps is not None and hasattr(model.pipe, "unet") and int(steps * strength) < 1:
        raise RunError(
            f"strength={strength!r} of {steps} steps is less than one step: nothing would be "
            "drawn; raise num_inference_steps or strength"
        )


def _image_to_image(model: HookedDiffusion) -> HookedDiffusion:
    """The image-to-image pipeline of the model's parts."""
    from diffusers import AutoPipelineForImage2Image

    try:
        pipe = AutoPipelineForImage2Image.from_pipe(model.pipe)
    except ValueError as error:
        raise UnsupportedModelError(
            f"diffusers has no image-to-image pipeline for {type(model.pipe).__name__}, which "
            "sdedit needs; `invert` and `masactrl` do without"
        ) from error
    pipe.set_progress_bar_config(**getattr(model.pipe, "_progress_bar_config", {}))
    if getattr(pipe, "latent_channels", None) == PICTURE_CHANNELS:
        # It takes what has as many channels as latents for latents, and would not encode a picture.
        pipe.latent_channels = None
    return HookedDiffusion(pipe, name=model.name)


def _parameters(model: HookedDiffusion) -> list[str]:
    return list(call_settings(model.pipe))
