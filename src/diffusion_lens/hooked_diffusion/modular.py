"""Modular pipelines of diffusers: their own call is followed, nothing else is described."""

from __future__ import annotations

from typing import Any

from diffusion_lens.errors import RunError


def refuse_modular(pipe: Any, what: str) -> None:
    """Refuse what modular pipelines, which are put together from blocks, do in ways of their own.

    Args:
        pipe: The pipeline.
        what: What was asked for.

    Raises:
        RunError: If it is a modular one.
    """
    if hasattr(pipe, "update_components"):
        raise RunError(
            f"{what} is not described for {type(pipe).__name__}, a modular pipeline, whose "
            "arguments and latents its blocks decide; hook a call of your own: `with "
            "model.hooks(...):` or `with model.caching(...) as cache:`, then `model.pipe(...)`"
        )
