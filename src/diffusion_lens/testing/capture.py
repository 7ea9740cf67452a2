"""The arguments of one denoiser call, taken from a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffusion_lens.border import PipelineSetting, public
from diffusion_lens.describing.tracing import bound
from diffusion_lens.errors import RunError
from diffusion_lens.hooked_diffusion import HookedDiffusion


class _CapturedError(Exception):
    """Stops a pipeline at its first call of the denoiser."""


@public
def capture_inputs(pipe: Any, **call: PipelineSetting) -> tuple[nn.Module, dict[str, Any]]:
    """Run a pipeline up to its first denoiser call and take that call's arguments.

    Args:
        pipe: A diffusers pipeline of a known family.
        **call: Arguments of the pipeline's own call. Two prompts make an even batch, which the
            contract needs to tell guidance branches apart.

    Returns:
        The denoiser and its keyword arguments, as `check_architecture` takes them.

    Raises:
        UnsupportedModelError: If the pipeline has no known denoiser.
        RunError: If it finishes without calling its denoiser.
    """
    denoiser = HookedDiffusion(pipe).denoiser
    found: dict[str, Any] = {}

    def capture(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found.update(bound(module, args, kwargs))
        raise _CapturedError

    handle = denoiser.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            pipe(**({"num_inference_steps": 1, "output_type": "latent"} | call))
    except _CapturedError:
        return denoiser, found
    finally:
        handle.remove()
        if hasattr(pipe, "maybe_free_model_hooks"):
            pipe.maybe_free_model_hooks()
    raise RunError(
        f"{type(pipe).__name__} finished without calling its {type(denoiser).__name__}; "
        "give it the arguments of an ordinary call, such as prompt="
    )
