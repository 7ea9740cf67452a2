"""Images and videos in and out of latents, in the form that the pipeline's loop holds them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.engine.noise import noise_level, timestep_at
from diffusion_lens.errors import RunError
from diffusion_lens.hooked_diffusion.beside_references import (
    as_held,
    own_image,
    plain_processor,
    stands_beside_references,
)
from diffusion_lens.hooked_diffusion.flat_patches import as_map, as_tokens, holds_flat_patches
from diffusion_lens.hooked_diffusion.packing import (
    frames_to_a_latent,
    packed,
    rows_and_columns,
    size_in_pixels,
    unpacked,
    unpacked_video,
    video_patches,
)
from diffusion_lens.hooked_diffusion.run import generators

VIDEO = ("batch", "channel", "frame", "height", "width")
"""Axes of a video as autoencoders take and give it."""


def encode_image(
    pipe: Any,
    image: Any,
    *,
    axes: Sequence[str],
    height: int | None,
    width: int | None,
    seed: int | None,
) -> Tensor:
    """Images as latents with some axes; see `HookedDiffusion.encode_image`."""
    video = _makes_videos(pipe, axes)
    beside = stands_beside_references(axes)
    processor = plain_processor(pipe) if beside else getattr(pipe, "image_processor", None)
    pixels = _pixels(pipe, image, processor, video=video, height=height, width=width)
    if not video and _takes_frames(pipe.vae):
        pixels = pixels[:, :, None]
    with torch.no_grad(), _upcast(pipe.vae) as vae:
        encoded = vae.encode(pixels.to(device=vae.device, dtype=vae.dtype))
    if hasattr(encoded, "latent_dist"):
        distribution = encoded.latent_dist
        if seed is None:
            latents = distribution.mode()
        else:
            latents = distribution.sample(generators([seed])[0])
    else:
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent  # one of DC
    if holds_flat_patches(pipe):
        latents = as_tokens(pipe, latents)
    if hasattr(pipe, "_patchify_latents"):
        latents = pipe._patchify_latents(latents)
    shift, scale, spread = _scaling(pipe, like=latents, divides=beside)
    latents = ((latents - shift) * scale / spread).to(pipe.vae.dtype)
    if beside:
        return as_held(pipe, latents, axes)
    if video and "frame" in axes:
        return latents.permute([VIDEO.index(axis) for axis in axes])
    if video:
        return pipe._pack_latents(latents, *video_patches(pipe))
    latents = latents[:, :, 0] if latents.ndim == len(VIDEO) else latents
    if _holds_frames(axes):
        return latents[:, :, None].permute([VIDEO.index(axis) for axis in axes])
    return packed(pipe, latents)


def _makes_videos(pipe: Any, axes: Sequence[str]) -> bool:
    """Whether a pipeline makes videos.

    Z-Image's denoiser has an axis of one frame for images, and LTX-Video's packed latents none.
    """
    packed = hasattr(pipe, "vae_temporal_compression_ratio")
    return packed or ("frame" in axes and hasattr(pipe, "video_processor"))


def _holds_frames(axes: Sequence[str]) -> bool:
    """Whether a loop that makes images holds videos of one frame: Kandinsky 5's, channels last."""
    return "frame" in axes and axes[-1] == "channel"


def _takes_frames(vae: Any) -> bool:
    """Whether an autoencoder is one of videos, for which an image is a video of one frame."""
    return any(weight.ndim == len(VIDEO) for weight in vae.parameters())


def without_condition(pipe: Any, latents: Tensor) -> Tensor:
    """The latents alone, where the loop of Kandinsky 5 holds a given image beside them."""
    denoiser: Any = getattr(pipe, "transformer", None)
    if not getattr(denoiser, "visual_cond", False):
        return latents
    return latents[..., : denoiser.config.in_visual_dim]


def _pixels(
    pipe: Any,
    image: Any,
    processor: Any,
    *,
    video: bool,
    height: int | None,
    width: int | None,
) -> Tensor:
    """Images as the autoencoder takes them, by a processor of images; videos by the pipeline's own.

    Raises:
        RunError: If they are of a form that the pipeline's processor does not know.
    """
    try:
        if video:
            pixels = pipe.video_processor.preprocess_video(image, height=height, width=width)
        else:
            pixels = processor.preprocess(image, height=height, width=width)
    except (IndexError, ValueError) as error:
        raise RunError(
            f"image= cannot be read ({error}); give PIL images, arrays with axes height, width, "
            "rgb in [0, 1], or tensors with axes rgb, height, width in [-1, 1]"
        ) from error
    if video:
        _refuse_frames(pipe, pixels.shape[2])
    config = pipe.vae.config
    # Mochi's autoencoder counts the waves, too, that it makes of the colours by itself.
    waves = hasattr(getattr(pipe.vae, "encoder", None), "fourier_features")
    wanted = getattr(config, "out_channels" if waves else "in_channels", pixels.shape[1])
    patch = getattr(pipe.vae.config, "patch_size", None)
    side = patch if isinstance(patch, int) else 1  # Wan's counts the pixels of one as channels
    if pixels.shape[1] * side**2 != wanted != pixels.shape[1]:
        raise RunError(
            f"image= has {pixels.shape[1]} channels, {type(pipe.vae).__name__} takes {wanted}; the "
            "axes of a tensor are rgb, height, width, those of an array height, width, rgb"
        )
    return pixels


def _refuse_frames(pipe: Any, frames: int) -> None:
    every, first = frames_to_a_latent(pipe), 0 if _is_allegros(pipe.vae) else 1
    if frames % every != first % every:
        fewer = (frames - first) // every * every + first
        counts = " or ".join(str(count) for count in (fewer, fewer + every) if count)
        takes = "one frame and then " if first else ""
        raise RunError(
            f"{frames} frames were given; {type(pipe.vae).__name__} takes {takes}{every} at a "
            f"time: give {counts}"
        )


def _is_allegros(vae: Any) -> bool:
    """Whether an autoencoder has no frame of its own before the others, and gives frames first."""
    return type(vae).__name__ == "AutoencoderKLAllegro"


def decode_latents(
    pipe: Any,
    latents: Tensor,
    *,
    axes: Sequence[str],
    height: int | None,
    width: int | None,
    output_type: str,
) -> Any:
    """Latents with some axes as images; see `HookedDiffusion.decode_latents`."""
    video, beside = _makes_videos(pipe, axes), stands_beside_references(axes)
    if video and "frame" in axes:
        latents = latents.permute([axes.index(axis) for axis in VIDEO])
    elif video:
        latents = unpacked_video(pipe, latents, height=height, width=width)
    elif _holds_frames(axes):
        frames = latents.permute([axes.index(axis) for axis in VIDEO])
        latents = frames.reshape(frames.shape[:2] + frames.shape[3:])  # strides as the pipeline's
    elif beside:
        latents = own_image(pipe, latents, axes, height=height, width=width)
    elif hasattr(pipe, "_pack_latents") and latents.ndim == 3:
        latents = unpacked(pipe, latents, height, width)
    with torch.no_grad(), _upcast(pipe.vae) as vae:
        latents = latents.to(vae.dtype)  # first, so that no shift is rounded to half precision
        shift, scale, spread = _scaling(pipe, like=latents, divides=beside)
        latents = latents * spread / scale + shift
        if holds_flat_patches(pipe):
            rows, columns = rows_and_columns(pipe, latents, *size_in_pixels(pipe, height, width))
            latents = as_map(pipe, latents, rows=rows, columns=columns)
        if hasattr(pipe, "_unpatchify_latents"):
            latents = pipe._unpatchify_latents(latents)
        more = {}
        if getattr(vae.config, "timestep_conditioning", False):  # LTX-Video decodes at noise 0
            more["temb"] = torch.zeros(len(latents), device=latents.device, dtype=latents.dtype)
        if latents.ndim == 4 and _takes_frames(vae):
            latents = latents[:, :, None]
        pixels = vae.decode(latents, return_dict=False, **more)[0]
    if _is_allegros(pipe.vae):
        pixels = pixels.transpose(1, 2)
    if video:
        return pipe.video_processor.postprocess_video(pixels, output_type=output_type)
    pixels = pixels[:, :, 0] if pixels.ndim == len(VIDEO) else pixels
    return pipe.image_processor.postprocess(pixels, output_type=output_type)


def add_noise(scheduler: Any, latents: Tensor, *, level: float, seed: int | list[int]) -> Tensor:
    """Latents at a noise level; see `HookedDiffusion.add_noise`."""
    if not 0 <= level <= 1:
        raise RunError(f"noise_level={level!r} must lie between 0 and 1")
    seeds = [seed] * len(latents) if isinstance(seed, int) else seed
    if len(seeds) != len(latents):
        raise RunError(f"{len(seeds)} seeds for {len(latents)} latents; give one, or one for each")
    noise = torch.cat(
        [
            torch.randn((1, *latents.shape[1:]), generator=generator, dtype=torch.float32)
            for generator in generators(seeds)
        ]
    ).to(latents)
    timestep = timestep_at(scheduler, level)
    if not scheduler.timesteps.dtype.is_floating_point:
        timestep = round(timestep) - (1 if level == 1 else 0)
    at = noise_level(scheduler, timestep)
    return at.signal * latents + at.noise * noise


@contextlib.contextmanager
def _upcast(vae: Any) -> Iterator[Any]:
    """A VAE in float32 where its config says that half precision overflows (SDXL)."""
    before = vae.dtype
    if before != torch.float16 or not getattr(vae.config, "force_upcast", False):
        yield vae
        return
    vae.to(torch.float32)
    try:
        yield vae
    finally:
        vae.to(before)


def _scaling(
    pipe: Any, *, like: Tensor, divides: bool
) -> tuple[float | Tensor, float | Tensor, float | Tensor]:
    """Shift, factor and spread of latents: `(encoded - shift) * factor / spread`.

    A config's mean and spread of each channel (Playground v2.5, Qwen-Image) count where the
    pipeline's own code looks for them: Stable Diffusion XL does; 1.x, whose VAE has the same class,
    3, Flux and CogVideoX do not. Flux.2's VAE has them as a batch norm of patches, LTX-Video's as
    buffers. Those of Wan and Qwen-Image have no other factor, and their pipelines multiply by what
    is 1 over the spread, which rounds in its own way; JoyImage-Edit's divide by the spread itself.
    """
    config = pipe.vae.config
    factor = getattr(config, "scaling_factor", None)
    flat = holds_flat_patches(pipe)
    shape = (1, 1, -1) if flat else (1, -1, *[1] * (like.ndim - 2))
    if flat or hasattr(pipe, "_patchify_latents"):
        norm = pipe.vae.bn
        written_in = "ErnieImage" in type(pipe).__name__  # and not what its autoencoder says
        least = 1e-5 if written_in else config.batch_norm_eps
        spread = torch.sqrt(norm.running_var.view(shape) + least).to(like)
        return norm.running_mean.view(shape).to(like), 1.0 if factor is None else factor, spread
    kept = dict(pipe.vae.named_buffers(recurse=False))
    mean, spread = (
        getattr(config, name, kept.get(name)) for name in ("latents_mean", "latents_std")
    )
    # What an EDM or trigflow loop holds is scaled to the data's deviation (Cosmos, SANA-Sprint).
    data = pipe.scheduler.config.sigma_data if _reads(type(pipe), "sigma_data") else 1.0
    read = divides or _reads(type(pipe), "latents_mean")
    if mean is not None and spread is not None and read:
        shift, by = (torch.as_tensor(one).view(shape).to(like) for one in (mean, spread))
        if divides:
            return shift, 1.0, by
        return (shift, data / by, 1.0) if factor is None else (shift, factor * data, by)
    return getattr(config, "shift_factor", None) or 0.0, data * (factor or 1.0), 1.0


def _reads(kind: type, name: str) -> bool:
    """Whether a pipeline's call reads something by name; a subclass calls that of its base."""
    calls = [
        inspect.unwrap(base.__dict__["__call__"])
        for base in kind.__mro__[:-1]
        if "__call__" in base.__dict__
    ]
    return any(name in call.__code__.co_names for call in calls)
