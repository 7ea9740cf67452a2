"""Latents of an image beside its references, as JoyImage-Edit's loops hold them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor

from diffusion_lens.errors import RunError
from diffusion_lens.hooked_diffusion.packing import pixels_to_a_latent

PATCHES = "batch (frames rows columns) channel depth down right"
MAP = "batch channel (frames depth) (rows down) (columns right)"


def stands_beside_references(axes: Sequence[str]) -> bool:
    """Whether a loop's latents hold references, too: on an axis of images, or as patches."""
    return "image" in axes or "down" in axes


def plain_processor(pipe: Any) -> Any:
    """One that takes images at their own size, as far as patches allow.

    Edit Plus's own brings each to about a megapixel, whatever size it is told.
    """
    from diffusers.image_processor import VaeImageProcessor

    side = pipe.transformer.config.patch_size[-1]
    return VaeImageProcessor(vae_scale_factor=pixels_to_a_latent(pipe) * side)


def as_held(pipe: Any, latents: Tensor, axes: Sequence[str]) -> Tensor:
    """Latents with axes batch, channel, frame, height, width as the loop holds an image alone."""
    if "image" in axes:
        return latents[:, None]
    depth, down, right = pipe.transformer.config.patch_size
    return rearrange(latents, f"{MAP} -> {PATCHES}", depth=depth, down=down, right=right)


def own_image(
    pipe: Any, latents: Tensor, axes: Sequence[str], *, height: int | None, width: int | None
) -> Tensor:
    """The image's own latents, with axes batch, channel, frame, height, width.

    Raises:
        RunError: If they have other axes, or patches that make no image of that size.
    """
    if latents.ndim != len(axes):
        raise RunError(
            f"latents of {type(pipe).__name__} have axes {', '.join(axes)}; got a tensor of shape "
            f"{tuple(latents.shape)}"
        )
    if "image" in axes:
        return latents[:, -1]  # the references stand before it
    pixels, sides = pixels_to_a_latent(pipe), latents.shape[-2:]
    rows, columns = (
        (given or 0) // pixels // side for given, side in zip((height, width), sides, strict=True)
    )
    if not 0 < rows * columns <= latents.shape[1]:
        raise RunError(
            f"the first of {latents.shape[1]} patches, behind which references may follow, do not "
            f"make an image of {height} x {width} pixels ({rows * columns} patches); give height= "
            "and width="
        )
    return rearrange(
        latents[:, : rows * columns], f"{PATCHES} -> {MAP}", frames=1, rows=rows, columns=columns
    )
