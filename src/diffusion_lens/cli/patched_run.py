"""Pictures beside a patching sweep: both runs, and the one with the most effective patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lens import HookedDiffusion, Site
    from diffusion_lens.analyses import PatchingResult
    from diffusion_lens.hook_points import HookPoint

WHOLE_RUN = (
    "The picture called patched is of a whole run with the best part patched; the effects are "
    "teacher-forced, each of one step by itself on the clean run's latents, so that a large one "
    "need not show in the picture."
)
"""What a report says of its picture where the sweep made no whole runs."""


def best_part(result: PatchingResult) -> dict[str, Any]:
    """The labels of the patch with the largest effect, and the effect; empty where there is none.

    Args:
        result: A sweep.
    """
    best = result.top(1)
    return {name: best[0][name] for name in (*result.axes, "effect")} if best else {}


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
        **settings: Of both runs.

    Returns:
        Pictures by the names `clean`, `corrupted` and `patched`; none without an effect.
    """
    from PIL.Image import fromarray

    from diffusion_lens import Site
    from diffusion_lens.analyses.patching import Outcome, activation_patching, latent_recovery

    best = best_part(result)
    chosen = [one for text in sites for one in _within(model, Site.of(text), best, window)]
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


def _within(model: HookedDiffusion, site: Site, best: dict[str, Any], window: int) -> list[Site]:
    """What a Site selects of the best part."""
    more: dict[str, Any] = {}
    if "head" in best:
        more["heads"] = [best["head"]]
    if "step" in best:
        more["steps"] = range(best["step"], best["step"] + window)
    names = model.hook_names(site.name) if best else []
    return [
        site.with_(name=name, **more)
        for name in names
        if name in model.points and _belongs(model.points[name], best)
    ]


def _belongs(point: HookPoint, best: dict[str, Any]) -> bool:
    quantity = point.name if point.block is None else point.name.split(".", 2)[2]
    labels = {
        "block": point.block,
        "stream": point.stream or "joint",
        "attention": quantity.split(".")[0],
        "point": quantity,
    }
    return point.dead is None and all(
        best[axis] == label for axis, label in labels.items() if axis in best
    )
