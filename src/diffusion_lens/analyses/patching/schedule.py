"""At which steps each hook point is patched: its Site's own, where it has some, or the sweep's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from diffusion_lens.analyses.patching.plan import Cell, Plan
from diffusion_lens.errors import PatchingError


@dataclass(frozen=True)
class Schedule:
    """The steps of a sweep.

    Attributes:
        cells: The patches.
        at: For each hook point, the steps at which it is patched, in order.
    """

    cells: Sequence[Cell]
    at: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, plan: Plan, wanted: Sequence[int] | None, there: Sequence[int]) -> Schedule:
        """The steps of a plan.

        Args:
            plan: The patches.
            wanted: Steps of hook points whose Site says none; None for all.
            there: The steps of the run.

        Raises:
            PatchingError: If the run has not all of the steps.
        """
        default = there if wanted is None else _existing(wanted, there, f"steps={list(wanted)}")
        at = {}
        for name, site in plan.sites.items():
            if site.steps is None:
                at[name] = tuple(default)
                continue
            asked = site.steps
            if isinstance(asked, slice):
                stop = there[-1] + 1 if asked.stop is None else asked.stop
                asked = range(asked.start or 0, stop, asked.step or 1)
            at[name] = tuple(_existing(asked, there, repr(site)))
        return cls(plan.cells, at)

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step at which something is patched."""
        return tuple(sorted({step for steps in self.at.values() for step in steps}))

    def active(self, steps: Sequence[int]) -> list[Cell]:
        """The patches that do something at some of these steps, without what they do at others."""
        found = []
        for cell in self.cells:
            kept = tuple(
                change for change in cell.changes if not set(steps).isdisjoint(self.at[change.name])
            )
            if kept:
                found.append(cell if kept == cell.changes else replace(cell, changes=kept))
        return found

    def stretches(self) -> Iterator[tuple[tuple[int, ...], list[Cell]]]:
        """Steps at which the same patches do the same, with these patches."""
        names = {
            step: frozenset(n for n, at in self.at.items() if step in at) for step in self.steps
        }
        for same in dict.fromkeys(names.values()):
            steps = tuple(step for step, active in names.items() if active == same)
            yield steps, self.active(steps)


def _existing(wanted: Sequence[int], there: Sequence[int], asked: str) -> list[int]:
    missing = next((step for step in wanted if step not in there), None)
    if missing is not None or not len(wanted):
        raise PatchingError(
            f"{asked}: the run has the steps {there[0]} to {there[-1]}; leave out the others, or "
            "raise num_inference_steps"
        )
    return sorted(set(wanted))
