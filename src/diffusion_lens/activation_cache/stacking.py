"""Which entries of a cache can lie beside each other on a new axis, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diffusion_lens.errors import CacheKeyError, listing
from diffusion_lens.hook_points.names import block_of, match_names, which_denoiser


class Kind(NamedTuple):
    """What entries must have in common.

    Attributes:
        shape: Shape at one step.
        axes: Axis names, where they are known.
        branch: Guidance branch.
        steps: The steps in order; -1 stands for a reduced value.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...] | None
    branch: str
    steps: tuple[int, ...]

    def __str__(self) -> str:
        """For an error that lists groups."""
        steps = "reduced over steps" if self.steps == (-1,) else f"steps {ranges(self.steps)}"
        return f"shape {self.shape}, branch {self.branch}, {steps}"


def names(asked: str | Sequence[str], known: Sequence[str]) -> list[str]:
    """The names to stack: those of a pattern in the order of blocks, several as they are given.

    A pattern means refiners, and what a second denoiser has, only where it names them; refiners,
    too, where nothing else is meant.

    Raises:
        UnknownHookPointError: If a name or pattern matches nothing.
    """
    if isinstance(asked, str):
        return _by_block(_matched(asked if "*" in asked else f"**.{asked}", known))
    return [name for one in asked for name in _by_block(_matched(one, known))]


def _matched(pattern: str, known: Sequence[str]) -> list[str]:
    of = which_denoiser(pattern)
    there = [name for name in known if which_denoiser(name) == of]
    found = match_names(pattern, there, model="this cache")
    blocks = [name for name in found if not name.startswith(f"{of}refiner.")]
    return found if pattern.startswith(f"{of}refiner.") else blocks or found


def _by_block(found: list[str]) -> list[str]:
    """Names in the order of their blocks, which a cache of several runs need not have."""
    blocks = {name: block_of(name) or ("", 0) for name in found}
    prefixes = list(dict.fromkeys(prefix for prefix, _ in blocks.values()))
    return sorted(found, key=lambda name: (prefixes.index(blocks[name][0]), blocks[name][1]))


def refuse_unequal(asked: str | Sequence[str], found: list[str], kinds: Mapping[str, Kind]) -> None:
    """Refuse to stack entries that do not belong beside each other.

    Raises:
        CacheKeyError: With the groups that stack.
    """
    if not found:
        raise CacheKeyError(f"stack({asked!r}) names nothing; give a short name, or several names")
    groups: dict[Kind, list[str]] = {}
    for name in dict.fromkeys(found):
        groups.setdefault(kinds[name], []).append(name)
    if len(groups) == 1:
        return
    differing = [
        field
        for field in ("shape", "axes", "branch", "steps")
        if len({getattr(kind, field) for kind in groups}) > 1
    ]
    lines = "; ".join(f"{kind}: {listing(members)}" for kind, members in groups.items())
    raise CacheKeyError(
        f"{asked!r} has {len(groups)} groups in this cache that do not stack, since they differ in "
        f"{' and '.join(differing)}: {lines}. Stack one group by giving its names."
    )


def ranges(steps: Sequence[int]) -> str:
    """Numbers as ranges: `0-4, 7`."""
    if not steps:
        return "none"
    groups: list[list[int]] = []
    for step in steps:
        if groups and groups[-1][-1] == step - 1:
            groups[-1].append(step)
        else:
            groups.append([step])
    return ", ".join(
        str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups
    )
