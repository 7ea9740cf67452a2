"""Latents of an image or video as tokens, as pipelines' loops hold them, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion_lens.errors import RunError


def pixels_to_a_latent(pipe: Any) -> int:
    """How many pixels of each side are one of the latents."""
    names = (
        "vae_scale_factor_spatial",
        "vae_spatial_compression_ratio",
        "vae_spatial_scale_factor",
        "vae_scale_factor",
    )
    return next(getattr(pipe, name) for name in names if hasattr(pipe, name))


def frames_to_a_latent(pipe: Any) -> int:
    """How many frames behind the first are one of the latents."""
    names = (
        "vae_scale_factor_temporal",
        "vae_temporal_compression_ratio",
        "vae_temporal_scale_factor",
    )
    return next(getattr(pipe, name) for name in names if hasattr(pipe, name))


def packed(pipe: Any, latents: Tensor) -> Tensor:
    """Latents with axes batch, channel, height, width as the pipeline's loop holds them."""
    if not hasattr(pipe, "_pack_latents"):
        return latents
    pack = getattr(pipe, f"_pack_latents{_unpatched(pipe)}")
    known = inspect.signature(pack).parameters
    _refuse_layers(pipe, known)
    if len(known) == 1:  # Flux.2: patches already
        return pack(latents)
    return pack(latents, *latents.shape, *_patch(pipe, known))


def unpacked(pipe: Any, latents: Tensor, height: int | None, width: int | None) -> Tensor:
    """Packed latents with the axes of the autoencoder's.

    Raises:
        RunError: If they make no image of that size.
    """
    _refuse_layers(pipe, inspect.signature(pipe._pack_latents).parameters)
    height, width = size_in_pixels(pipe, height, width)
    rows, columns = rows_and_columns(pipe, latents, height, width)
    if not hasattr(pipe, "_unpack_latents"):  # Flux.2 looks up each token's place instead
        return latents.transpose(1, 2).unflatten(2, (rows, columns))
    unpack = getattr(pipe, f"_unpack_latents{_unpatched(pipe)}")
    known = inspect.signature(unpack).parameters
    more = (pipe.vae_scale_factor,) if "vae_scale_factor" in known else ()
    return unpack(latents, height, width, *_patch(pipe, known), *more)


def _refuse_layers(pipe: Any, known: Mapping[str, Any]) -> None:
    """Refuse what packs an image and its layers.

    Raises:
        RunError: Naming the pipeline.
    """
    if "layers" in known:
        raise RunError(
            f"{type(pipe).__name__} packs an image and its layers into one sequence, which is not "
            "described for images in and out of latents; take the images that the pipeline gives"
        )


def _unpatched(pipe: Any) -> str:
    """The end of the names of what packs where every latent is a token (Bria FIBO); empty else."""
    return "_no_patch" if hasattr(pipe, "_pack_latents_no_patch") else ""


def _patch(pipe: Any, known: Mapping[str, Any]) -> tuple[int, ...]:
    """The side of a patch, for what packs and asks for it (Nucleus-Image)."""
    return (pipe.transformer.config.patch_size,) if "patch_size" in known else ()


def size_in_pixels(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels, where they are not given those of the pipeline's own images."""
    usual = inspect.signature(type(pipe).__call__).parameters
    native = getattr(pipe, "default_sample_size", 0) * pipe.vae_scale_factor
    return (
        height or native or usual["height"].default,
        width or native or usual["width"].default,
    )


def rows_and_columns(pipe: Any, latents: Tensor, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of packed latents.

    Raises:
        RunError: If they make no image of that size.
    """
    side = pipe.image_processor.config.vae_scale_factor  # pixels on a side of a token
    side = pixels_to_a_latent(pipe) if _unpatched(pipe) else side
    rows, columns = height // side, width // side
    if rows * columns != latents.shape[1]:
        raise RunError(
            f"packed latents of {latents.shape[1]} tokens do not make an image of "
            f"{height} x {width} pixels ({rows * columns} tokens); give height= and width="
        )
    return rows, columns


def video_patches(pipe: Any) -> tuple[int, int]:
    """Latents of a side, and frames of them, that LTX-Video packs into one token."""
    return pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size


def unpacked_video(pipe: Any, latents: Tensor, *, height: int | None, width: int | None) -> Tensor:
    """The latents of LTX-Video with axes batch, channel, frame, height, width.

    Raises:
        RunError: If they are not whole frames of that size.
    """
    pixels, (side, depth) = pixels_to_a_latent(pipe), video_patches(pipe)
    rows, columns = ((given or 0) // pixels // side for given in (height, width))
    tokens = latents.shape[1]
    if not rows * columns or tokens % (rows * columns):
        raise RunError(
            f"packed latents of {tokens} tokens do not make frames of {height} x {width} pixels "
            f"({rows * columns} tokens each); give height= and width="
        )
    frames = tokens // (rows * columns)
    return pipe._unpack_latents(latents, frames, rows, columns, side, depth)
