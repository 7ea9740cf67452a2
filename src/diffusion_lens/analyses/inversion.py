"""The noise from which a model draws a given image."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.edited_images import inference_steps
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.authoring import fitted
from diffusion_lens.border import Count, Number, PipelineSetting, public
from diffusion_lens.errors import RunError, UnsupportedModelError
from diffusion_lens.showing.gallery import gallery
from diffusion_lens.showing.one_line import one_line, short

CITATION = (
    "Song et al., Denoising Diffusion Implicit Models, ICLR 2021, arXiv 2010.02502; for flows, the "
    "Euler steps of Liu et al., arXiv 2209.03003, undone by fixed-point iteration"
)


@dataclass(frozen=True)
class Inversion(Saved):
    """Noise for an image, and how well the image comes back from it.

    Attributes:
        latents: The noise, for `latents=` of a run with the same prompt, steps and guidance.
        prompt: The prompt.
        image: The image.
        reconstruction: What the model draws from the noise; None for `output_type="latent"`.
        clean: The latents of the image.
        latent_error: Root mean square difference of the latents after the round trip, as a share of
            the root mean square of the image's.
        image_error: Mean absolute difference of the pixels after the round trip, in [0, 1].
        autoencoder_error: The same after encoding and decoding alone, below which no inversion can
            come.
        settings: The arguments of a run that draws the image again.
        made_by: What was run and how.
        citation: What to cite.
    """

    latents: Float[Tensor, "row ..."]
    prompt: str
    image: Any
    reconstruction: Any
    clean: Float[Tensor, "row ..."]
    latent_error: float
    image_error: float
    autoencoder_error: float
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    def plot(self) -> Any:
        """The image beside what came back."""
        from diffusion_lens import viz

        return viz.image_strip(
            [self.image, self.reconstruction],
            captions=["image", "drawn from the noise"],
            title="Inversion",
            note=f"Mean absolute difference of pixels {self.image_error:.3f}, in [0, 1]; "
            f"{self.autoencoder_error:.3f} of it by the autoencoder alone.",
        )

    def __repr__(self) -> str:
        """Prompt and errors in one line."""
        return one_line(
            self,
            short(self.prompt),
            f"latents {tuple(self.latents.shape)}",
            f"image error {self.image_error:.4f}",
            f"of which autoencoder {self.autoencoder_error:.4f}",
            made_by=self.made_by,
            look=(".latents", ".settings", ".plot()"),
        )

    def _repr_html_(self) -> str | None:
        """The image, and what came back."""
        if self.reconstruction is None:
            return gallery([self.image], captions=["image"], line=repr(self))
        shown = [self.image, self.reconstruction]
        return gallery(shown, captions=["image", "from the noise"], line=repr(self))


@public
def invert(
    model: HookedDiffusion,
    image: Image.Image,
    prompt: str | Run = "",
    *,
    rounds: Count = 5,
    guidance_scale: Number = 1.0,
    **settings: PipelineSetting,
) -> Inversion:
    """Find the noise from which the model draws an image, and draw it again.

    Models with a DDIM scheduler are inverted by diffusers' inverse scheduler, which takes the
    prediction of one step for that of the next: more steps make it better. In flow models each
    Euler step is undone, by fixed-point iteration. With guidance both become unstable; edit with it
    and invert without.

    Args:
        model: A model with a DDIM scheduler, or a flow model with Euler's.
        image: The image, of PIL; resized to a size that the model takes, with a warning,
            or to `height` and `width` of the settings.
        prompt: A description of the image, or a `Run` of one.
        rounds: Fixed-point iterations of each step of a flow.
        guidance_scale: Of inversion and round trip. A model that takes the scale as an input
            (FLUX.1-dev) is given it.
        **settings: Arguments of the pipeline's own call, such as `num_inference_steps`.

    Returns:
        The noise, and the errors of the round trip.

    Raises:
        RunError: If the image is too small, there are several prompts, or the scheduler's settings
            lead to values that are no numbers.
        UnsupportedModelError: If the scheduler is neither, or its steps cannot be undone.

    Source: arXiv 2010.02502, section 4.3, by `DDIMInverseScheduler`. Differs: the iteration for
    flows is ours.
    """
    run = Run.of(prompt, seed=0, settings={**settings, "guidance_scale": guidance_scale})
    if len(run.prompts) != 1:
        raise RunError(f"an image is inverted with one prompt, got {run.prompts!r}")
    image = fitted(model, image, **{side: run.settings.get(side) for side in ("height", "width")})
    run = run.with_(height=image.height, width=image.width)
    scheduler = type(model.pipe.scheduler).__name__  # type: ignore[union-attr]
    _refuse_schedule(model)
    clean = model.encode_image(image)
    if scheduler == "DDIMScheduler":
        noise = _by_inverse_scheduler(model, run, clean)
    elif scheduler == "FlowMatchEulerDiscreteScheduler":
        noise = _by_fixed_points(model, run, clean, rounds)
    else:
        raise UnsupportedModelError(
            f"invert undoes the steps of DDIMScheduler and of FlowMatchEulerDiscreteScheduler, "
            f"{model.name} has {scheduler}; for a model that predicts noise set `model.pipe."
            "scheduler = DDIMScheduler.from_config(model.pipe.scheduler.config)`, and keep it for "
            "the edits"
        )
    _refuse_no_numbers(model, noise, "its noise")
    return _round_trip(model, run, image, clean, noise)


def _refuse_schedule(model: HookedDiffusion) -> None:
    """Refuse schedules of the right class whose steps cannot be undone.

    Raises:
        UnsupportedModelError: If this is one.
    """
    scheduler: Any = model.pipe.scheduler  # type: ignore[union-attr]
    name, config = type(scheduler).__name__, scheduler.config
    if name == "DDIMScheduler" and config.timestep_spacing not in ("leading", "trailing"):
        raise UnsupportedModelError(
            "diffusers' DDIMInverseScheduler undoes timesteps that are spaced 'leading' or "
            f"'trailing', {model.name} has timestep_spacing={config.timestep_spacing!r}; set "
            "`model.pipe.scheduler = DDIMScheduler.from_config(model.pipe.scheduler.config, "
            "timestep_spacing='leading')`"
        )
    if config.get("stochastic_sampling"):
        raise UnsupportedModelError(
            f"{model.name} has a {name} with stochastic_sampling=True, whose steps draw noise and "
            "cannot be undone; set one that is made with `from_config(..., "
            "stochastic_sampling=False)`"
        )


def _refuse_no_numbers(model: HookedDiffusion, latents: Tensor, what: str) -> None:
    """Refuse an inversion that divided by nothing or overflowed.

    Raises:
        RunError: If it did.
    """
    if latents.isfinite().all():
        return
    config = model.pipe.scheduler.config  # type: ignore[union-attr]
    names = ("prediction_type", "set_alpha_to_one", "rescale_betas_zero_snr")
    said = "".join(f", {name}={config[name]!r}" for name in names if name in config)
    raise RunError(
        f"the inversion failed: {what} has values that are no numbers ({latents.dtype}{said}). "
        "prediction_type='sample' needs set_alpha_to_one=False, rescale_betas_zero_snr=True needs "
        "prediction_type='v_prediction'; half precision overflows: load the model in float32"
    )


def _by_inverse_scheduler(model: HookedDiffusion, run: Run, clean: Tensor) -> Tensor:
    from diffusers import DDIMInverseScheduler

    pipe = copy.copy(model.pipe)
    assert pipe is not None
    pipe.scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    inverse = HookedDiffusion(pipe, name=model.name)
    out = inverse(run.with_(latents=clean, output_type="latent"))
    assert out.latents is not None
    return out.latents


def _by_fixed_points(model: HookedDiffusion, run: Run, clean: Tensor, rounds: int) -> Tensor:
    """For each step, from the last, the latents that Euler's step brings to those after it."""
    latents, after = clean, 0.0
    for step in reversed(range(inference_steps(model, run))):
        found, before = latents, after
        for _ in range(rounds):
            with torch.no_grad():
                prediction = model.denoise(found, prompt=run, step=step)
            before = prediction.level.noise
            found = latents + (before - after) * prediction.guided.to(latents)
        latents, after = found, before
    return latents


def _round_trip(
    model: HookedDiffusion, run: Run, image: Image.Image, clean: Tensor, noise: Tensor
) -> Inversion:
    again = model(run.with_(latents=noise, output_type="latent"))
    assert again.latents is not None
    _refuse_no_numbers(model, again.latents, "what is drawn from its noise")
    height, width = image.height, image.width
    drawn = model.decode_latents(again.latents, height=height, width=width)[0]
    decoded = model.decode_latents(clean, height=height, width=width)[0]
    error = (again.latents - clean).square().mean().sqrt() / clean.square().mean().sqrt()
    kept = {name: value for name, value in run.settings.items() if name != "guidance_scale"}
    return Inversion(
        latents=noise,
        prompt=run.prompts[0],
        image=image,
        reconstruction=drawn,
        clean=clean,
        latent_error=float(error),
        image_error=_difference(drawn, image),
        autoencoder_error=_difference(decoded, image),
        settings=kept,
        made_by=again.made_by.as_dict(),
    )


def _difference(one: Image.Image, other: Image.Image) -> float:
    values = [np.asarray(some.convert("RGB"), dtype=np.float32) / 255 for some in (one, other)]
    return float(np.abs(values[0] - values[1]).mean())
