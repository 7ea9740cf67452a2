"""The metrics of sweeps, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusion_lens.cli.messages import fail


def refuse_unknown_metric(metric: str, known: Sequence[str], *, of_toy: bool) -> None:
    """Refuse a name that is none of some, and to grade what no program can.

    Args:
        metric: The name.
        known: The names that there are.
        of_toy: Whether the model is a toy.
    """
    if metric not in known:
        from diffusion_lens.errors import closest

        near = closest(metric, known, count=1) or known
        fail(f"--metric {metric!r} is none of {', '.join(known)}. Closest: {near[0]}")
    if metric == "graded" and not of_toy:
        fail("--metric graded reads pictures of the toys' world; give a toy model, such as "
             "toy:shapes-unet, or another metric")  # fmt: skip


def metric_of(name: str, caption: str, part: str | None) -> Any:
    """The metric of a name.

    Args:
        name: The name.
        caption: What `graded` looks for in an image.
        part: Which part of it; None for all.
    """
    from diffusion_lens.analyses import patching

    if name == "graded":
        return patching.graded(caption, part="all" if part is None else part)
    return getattr(patching, name)
