"""Tiny denoisers of every family: real diffusers classes, random weights, a call that fits each.

Fresh diffusers weights make poor tests: gates start at zero, so that half of a block does nothing,
and attention is all but uniform, so that a mixed-up head or stream hardly shows. Here every weight
is drawn so that gates are of order 1 and the scores of one query differ by several units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from diffusion_lens.border import Count, Seed, public
from diffusion_lens.errors import MissingClassError
from diffusion_lens.testing.tiny_families import crossed, joint, joint_video, shared, single, unets
from diffusion_lens.testing.tiny_families.drawing import Make

SHARPNESS = 1.6
"""Factor on the projections to queries and keys (and on the weights of their norms)."""

QUERIES_AND_KEYS = (
    "to_q.",
    "to_k.",
    "add_q_proj.",
    "add_k_proj.",
    "to_qkv",
    "to_query.",
    "to_key.",
)
QUERY_AND_KEY_NORMS = (
    "norm_q.",
    "norm_k.",
    "norm_added_q.",
    "norm_added_k.",
    "query_norm.",
    "key_norm.",
)

KEPT_IN_FLOAT32 = {
    "kandinsky5": ("time_embeddings", "modulation", "visual_modulation", "text_modulation")
}
"""Modules that stay in float32, as diffusers loads them, where the model cannot run otherwise."""


@public
def tiny_denoiser(
    family: str, *, dtype: torch.dtype = torch.float32, batch: Count = 2, seed: Seed = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """A small random denoiser of a family, and the keyword arguments of one call.

    Args:
        family: One of `TINY_FAMILIES`.
        dtype: Precision of the weights and of every floating input.
        batch: Batch size; even, so that it can hold two guidance branches.
        seed: Of weights and inputs.

    Returns:
        The denoiser, in evaluation mode, and its arguments.

    Raises:
        LookupError: If the family has no tiny model.
        MissingClassError: If the installed diffusers does not have its class.
    """
    if family not in TINY_FAMILIES:
        raise LookupError(f"no tiny model of {family!r}; there are {', '.join(TINY_FAMILIES)}")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.random.fork_rng(devices=[]), _missing_classes_named(family):
        denoiser, inputs = TINY_FAMILIES[family](draw, batch)
    draw_weights(denoiser, generator)
    nn.Module.to(denoiser, dtype)  # the override in diffusers logs a warning about nothing
    for path, module in denoiser.named_modules():
        if path.rpartition(".")[2] in KEPT_IN_FLOAT32.get(family, ()):
            nn.Module.to(module, torch.float32)
    return denoiser.eval(), _cast(inputs, dtype)


@contextlib.contextmanager
def _missing_classes_named(family: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, AttributeError) as error:
        if "diffusers" not in str(error):
            raise
        raise MissingClassError(
            f"diffusers {diffusers.__version__} has no class for the tiny model of {family!r} "
            f"({error}); upgrade diffusers"
        ) from error


def draw_weights(denoiser: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight anew, so that gates are open and attention is sharp."""
    with torch.no_grad():
        for name, weight in denoiser.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                factor = SHARPNESS if any(part in name for part in QUERIES_AND_KEYS) else 1.0
                weight.copy_(noise * factor * weight[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                sharp = any(part in name for part in QUERY_AND_KEY_NORMS)
                weight.copy_((SHARPNESS if sharp else 1.0) + 0.1 * noise)
            else:
                weight.copy_(0.3 * noise)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_cast(inner, dtype) for inner in value)
    if isinstance(value, dict):
        return {key: _cast(inner, dtype) for key, inner in value.items()}
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


TINY_FAMILIES: dict[str, Make] = {
    **unets.FAMILIES,
    **joint.FAMILIES,
    **joint_video.FAMILIES,
    **shared.FAMILIES,
    **single.FAMILIES,
    **crossed.FAMILIES,
}
"""What makes the tiny denoiser of each family."""
