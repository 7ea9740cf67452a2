"""Pictures beside a patching sweep: both runs, and the one with the most effective patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusion_lens.cli.best_part import best_part, sites_of

if TYPE_CHECKING:
    from diffusion_lens import HookedDiffusion
    from diffusion_lens.analyses import PatchingResult

WHOLE_RUN = (
    "The picture called patched is of a whole run with the best part patched; the effects are "
    "teacher-forced, each of one step by itself on the clean run's latents, so that a large one "
    "need not show in the picture."
)
"""What a report says of its picture where the sweep made no whole runs."""


def patched_images(
    model: HookedDiffusion,
    clean: str,
    corrupted: str,
    *,
    result: PatchingResult,
    sites: Sequence[str],
    direction: str,
    branch: str | None,
    steps: Sequence[int] | None,
    window: int,
    positions: Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Draw the first sample of both runs, and of the one in which the best part is patched.

    The part is patched in a whole run, whatever the sweep's mode: what a single evaluation comes to
    is no picture.

    Args:
        model: The model.
        clean: Its prompt.
        corrupted: Its prompt.
        result: The sweep.
        sites: Those of the sweep.
        direction: Likewise.
        branch: Likewise.
        steps: Likewise.
        window: Steps from the best step on, where steps were patched apart.
        positions: Those of the sweep.
        **settings: Of both runs.

    Returns:
        Pictures by the names `clean`, `corrupted` and `patched`; none without an effect.
    """
    from PIL.Image import fromarray

    from diffusion_lens.analyses.patching import Outcome, activation_patching, latent_recovery

    best = best_part(result)
    chosen = sites_of(model, sites, best, steps=steps, window=window)
    if not chosen:
        return {}
    seen: list[Outcome] = []

    def watched(outcome: Outcome) -> Any:
        seen.append(outcome)
        return latent_recovery(outcome)

    words = result.labels.get("pos", ("all",))
    activation_patching(
        model,
        clean,
        corrupted,
        sites=chosen,
        axes=("pos",) if "pos" in result.axes else (),
        metric=watched,
        mode="on-trajectory",
        direction=direction,
        seeds=[result.seeds[0]],
        steps=steps,
        positions=positions,
        branch=branch,
        show_progress=False,
        **settings,
    )
    last = seen[-1]
    assert last.source is not None
    assert last.base is not None
    rows = [row for outcome in seen for row in outcome.images]  # both sides, then each word
    patched = rows[words.index(best.get("pos", "all")) - len(words)]
    sides = {"clean": last.source.images[0], "corrupted": last.base.images[0]}
    if direction == "noise":
        sides = dict(zip(sides, reversed(sides.values()), strict=True))
    return {name: fromarray(one) for name, one in (*sides.items(), ("patched", patched))}
