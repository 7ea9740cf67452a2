"""What the hooks of a run did."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusion_lens.engine.firing import Registration, describe
from diffusion_lens.engine.run_state import Seen
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import HookNeverFiredError, listing
from diffusion_lens.hook_points.names import is_pattern


@dataclass(frozen=True)
class ReportRow:
    """One hook at one hook point.

    Attributes:
        site: The Site that was asked for.
        hook: The hook function.
        name: The hook point.
        fired: How often it was called: once for each evaluation and branch.
        edited: How often it changed what it saw.
        change: Mean absolute change of the edited values, over all edits; 0 without edits.
    """

    site: str
    hook: str
    name: str
    fired: int
    edited: int
    change: float


@dataclass(frozen=True)
class Report:
    """A table of what every hook did; prints as text and in notebooks.

    Attributes:
        rows: One row for each hook at each hook point.
    """

    rows: tuple[ReportRow, ...]

    @classmethod
    def of(cls, registrations: Sequence[Registration]) -> Report:
        """The report of some hooks. Reading it waits for the device once."""
        return cls(
            tuple(
                ReportRow(
                    site=repr(registration.site),
                    hook=describe(registration.fn),
                    name=name,
                    fired=fired.calls,
                    edited=fired.edits,
                    change=0.0 if fired.change is None else float(fired.change) / fired.edits,
                )
                for registration in registrations
                for name, fired in registration.fired.items()
            )
        )

    def __iter__(self) -> Iterator[ReportRow]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Aligned columns."""
        if not self.rows:
            return "no hooks"
        cells = [
            ("hook point", "hook", "fired", "edited", "mean |change|"),
            *map(_cells, self.rows),
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th>{name}</th>"
            for name in ("hook point", "hook", "fired", "edited", "mean |change|")
        )
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: ReportRow) -> tuple[str, ...]:
    change = f"{row.change:.3g}" if row.edited else ""
    return (row.name, row.hook, str(row.fired), str(row.edited), change)


@contextlib.contextmanager
def hooks_on(wiring: Wiring, registrations: Sequence[Registration]) -> Iterator[None]:
    """Keep hooks on while the context is open, and refuse those that stayed silent in its runs.

    Raises:
        HookNeverFiredError: At the end, if the model ran and a hook never saw a value.
    """
    tracker = wiring.tracker
    total = tracker.total
    with wiring.registered(registrations), tracker.noting() as seen:
        yield
        if tracker.total > total or tracker.denoiser is not wiring.denoiser:
            refuse_silent(wiring, registrations, seen)


def refuse_silent(wiring: Wiring, registrations: Sequence[Registration], seen: Seen) -> None:
    """Refuse a run in which a requested hook point never fired; see `refuse_silence`."""
    names: dict[Registration, list[str]] = {registration: [] for registration in registrations}
    for tap in wiring.taps_of(registrations):
        names[tap.registration].append(tap.point.name)
    steps = 1 + max(seen.steps, default=-1)
    refuse_silence(registrations, names, branches=sorted(seen.branches), steps=steps)


def refuse_silence(
    registrations: Sequence[Registration],
    names: dict[Registration, list[str]],
    *,
    branches: Sequence[str],
    steps: int,
) -> None:
    """Refuse a run in which a requested hook point never fired.

    Args:
        registrations: The hooks.
        names: The hook points that each was attached to.
        branches: The guidance branches that ran.
        steps: How many steps ran.

    Raises:
        HookNeverFiredError: Saying which, and what did run.
    """
    for registration in registrations:
        silent = [
            name
            for name in names.get(registration, [])
            if name not in registration.fired or not registration.fired[name].shown
        ]
        pattern = registration.site.name
        if isinstance(pattern, str) and is_pattern(pattern):
            silent = [
                name
                for name in silent
                if name not in ("hook_sample", "hook_guided_pred", "hook_pred_x0")
            ]
        if silent and registration.backward:
            raise HookNeverFiredError(
                f"no gradient reaches {describe(registration.fn)} at {listing(silent)} "
                f"({registration.site!r}): generation runs without gradients. Use "
                "`model.denoise(...)` inside `model.hooks(bwd_hooks=...)`, with latents, "
                "embeddings or weights that require them, and call backward there."
            )
        if silent:
            raise HookNeverFiredError(
                f"{describe(registration.fn)} never fired at {listing(silent)} "
                f"({registration.site!r}), though the model ran {steps} steps (0 to {steps - 1}) "
                f"in the branches {sorted(branches)}. Check steps= and branch=, and that the "
                "pipeline does not skip these blocks."
            )
