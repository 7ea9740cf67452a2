"""The part of a sweep with the largest effect, as Sites that address it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lens import HookedDiffusion, Site
    from diffusion_lens.analyses.patching.effects import Effects
    from diffusion_lens.hook_points import HookPoint


def best_part(result: Effects) -> dict[str, Any]:
    """The labels of the part with the largest effect, and the effect; empty where there is none.

    Args:
        result: A sweep.
    """
    best = result.top(1)
    return {name: best[0][name] for name in (*result.axes, "effect")} if best else {}


def best_label(result: Effects) -> str:
    """What a caption calls that part: its labels."""
    labels = best_part(result).items()
    return ", ".join(f"{axis} {label}" for axis, label in labels if axis != "effect")


def sites_of(
    model: HookedDiffusion,
    sites: Sequence[str],
    best: Mapping[str, Any],
    *,
    steps: Sequence[int] | None,
    window: int,
) -> list[Site]:
    """What the sites of a sweep select of its best part.

    Args:
        model: The model.
        sites: Those of the sweep.
        best: The part's labels.
        steps: The steps of the sweep; None for all.
        window: How many of them from the best step on, where steps were apart.
    """
    from diffusion_lens import Site

    more: dict[str, Any] = {}
    if "head" in best:
        more["heads"] = [best["head"]]
    if "step" in best:
        first = best["step"]
        later = range(first, first + window) if steps is None else sorted(steps)
        more["steps"] = [step for step in later if step >= first][:window]
    return [
        site.with_(name=name, **more)
        for site in map(Site.of, sites if best else ())
        for name in model.hook_names(site.name)
        if name in model.points and _belongs(model.points[name], site, best)
    ]


def _belongs(point: HookPoint, site: Site, best: Mapping[str, Any]) -> bool:
    quantity = point.name if point.block is None else point.name.split(".", 2)[2]
    labels = {
        "block": point.block,
        "stream": point.stream or "joint",
        "attention": quantity.split(".")[0],
        "point": quantity,
    }
    if "head" in best:
        from diffusion_lens.authoring import heads_in

        chosen = heads_in(point, site)
        if best["head"] not in (range(point.heads or 0) if chosen is None else chosen):
            return False
    return point.dead is None and all(
        best[axis] == label for axis, label in labels.items() if axis in best
    )
