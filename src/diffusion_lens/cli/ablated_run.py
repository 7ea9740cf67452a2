"""Pictures beside an ablation sweep: the intact run, and the one with the largest effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffusion_lens.cli.best_part import best_part, sites_of

if TYPE_CHECKING:
    from diffusion_lens import HookedDiffusion
    from diffusion_lens.analyses import AblationResult


def ablated_images(
    model: HookedDiffusion,
    prompt: str,
    *,
    result: AblationResult,
    sites: Sequence[str],
    value: str,
    steps: Sequence[int] | None,
    window: int,
    positions: Sequence[str] | None,
    **more: Any,
) -> dict[str, Any]:
    """Draw the first sample of the intact run, and of the one with the largest effect.

    Args:
        model: The model.
        prompt: Its prompt.
        result: The sweep.
        sites: Those of the sweep.
        value: Likewise.
        steps: Likewise.
        window: Likewise.
        positions: Likewise.
        **more: Other arguments of the sweep, and settings.

    Returns:
        Pictures by the names `intact` and `ablated`; none without an effect.
    """
    from PIL.Image import fromarray

    from diffusion_lens.analyses.patching import Outcome, ablation_sweep, latent_distance

    best = best_part(result)
    chosen = sites_of(model, sites, best, steps=steps, window=window)
    if not chosen:
        return {}
    seen: list[Outcome] = []

    def watched(outcome: Outcome) -> Any:
        seen.append(outcome)
        return latent_distance(outcome)

    apart = "pos" in result.axes
    # What is put in depends on the other samples, unless it is zeros.
    seeds = list(result.seeds[:1] if value == "zero" else result.seeds)
    ablation_sweep(
        model,
        prompt,
        sites=chosen,
        axes=("pos",) if apart else (),
        metric=watched,
        value=value,
        steps=steps,
        positions=positions,
        seeds=seeds,
        show_progress=False,
        **more,
    )
    _, intact, *ablated = seen  # the first is of a source, which ablations have not
    number = result.labels["pos"].index(best["pos"]) if apart else 0
    rows = [(one, row) for one in ablated for row in range(len(one.samples))]
    firsts = {"intact": (intact, 0), "ablated": rows[number * len(seeds)]}
    return {name: fromarray(_image(*at)) for name, at in firsts.items()}


def _image(outcome: Any, row: int) -> Any:
    """The picture of one row; the others are not decoded."""
    alone = replace(
        outcome, value=outcome.value[row : row + 1], samples=outcome.samples[row : row + 1]
    )
    return alone.images[0]
