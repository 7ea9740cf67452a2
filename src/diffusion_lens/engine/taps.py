"""Registrations at hook points: where each one goes, and what it selects there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusion_lens.engine.branches import Rows
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.registration import Registration
from diffusion_lens.engine.selection import (
    Part,
    behind,
    contiguous,
    heads_in,
    numbers,
    selects,
    size_of,
    token_index,
)
from diffusion_lens.errors import SiteError, closest, listing
from diffusion_lens.hook_points.context import HookContext
from diffusion_lens.hook_points.names import match_names, which_denoiser
from diffusion_lens.hook_points.point import HookPoint, along
from diffusion_lens.hook_points.selectors import GUIDED, Indices
from diffusion_lens.hook_points.site import Site
from diffusion_lens.showing.one_line import counted

SELECTIONS_KEPT = 8
"""How many prompts and sizes a hook remembers its selection for."""


@dataclass(frozen=True)
class Selection:
    """What a Site selects at one hook point, for given token counts.

    Attributes:
        index: Indices by axis name; None is the whole axis.
        part: The same as (dimension, index) pairs, whole axes left out.
        heads: The selected heads as numbers.
        streams: For each token axis, where each stream lies in what is selected.
        whole: Full length of each of these axes.
    """

    index: Mapping[str, Indices | None]
    part: Part
    heads: tuple[int, ...] | None
    streams: Mapping[str, Mapping[str, slice | tuple[int, ...]]]
    whole: Mapping[str, int]

    @classmethod
    def of(
        cls, point: HookPoint, index: Mapping[str, Indices | None], lengths: Mapping[str, int]
    ) -> Selection:
        """Work out the rest from the indices."""
        streams = {
            axis: _stream_parts(sequence, along(axis, lengths), index.get(axis))
            for axis, sequence in point.sequences.items()
        }
        heads = None if point.heads is None else numbers(index["head"], point.heads)
        whole = {
            axis: sum(along(axis, lengths)[name] for name in sequence)
            for axis, sequence in point.sequences.items()
        }
        if point.heads is not None:
            whole["head"] = point.heads
        return cls(index, axis_part(point.axes, index), heads, streams, whole)


@dataclass(eq=False)
class Tap:
    """One registration at one hook point."""

    registration: Registration
    point: HookPoint
    heads: tuple[int, ...] | None
    selections: dict[Any, Selection] = field(default_factory=dict)

    @property
    def of(self) -> str:
        """What the names of its denoiser begin with."""
        return which_denoiser(self.point.name)

    def active(self, evaluation: Evaluation, branch: str) -> bool:
        """Whether the hook fires at this step in this branch."""
        site = self.registration.site
        if self.registration.closed or not site.has_step(evaluation.step):
            return False
        if self.point.module != "scheduler" and self.of != evaluation.of:
            return False
        return branch == GUIDED or site.fires_in(branch)

    def selection(
        self, evaluation: Evaluation, branch: str, lengths: Mapping[str, int]
    ) -> Selection:
        """What the Site selects here; worked out once for each prompt and size."""
        site = self.registration.site
        by_axis = {"query": site.query, "key": site.key, "pos": site.pos}
        worded = bool(site.words)
        prompts = evaluation.known_prompts(branch) if worded else ()
        state = (branch if worded else "", tuple(lengths.items()), prompts)
        if state not in self.selections:
            index: dict[str, Indices | None] = {"head": contiguous(self.heads)}
            for axis, sequence in self.point.sequences.items():
                where = f"{axis} of {self.point.name}"
                index[axis] = contiguous(
                    token_index(
                        behind(by_axis.get(axis), self.point.skipped, where=where),
                        sequence,
                        along(axis, lengths),
                        lambda word: self._places(evaluation, branch, word),
                        where=where,
                    )
                )
            if len(self.selections) > SELECTIONS_KEPT:
                self.selections.clear()
            self.selections[state] = Selection.of(self.point, index, lengths)
        return self.selections[state]

    def _places(self, evaluation: Evaluation, branch: str, word: str) -> tuple[int, ...]:
        """Where a word lies here, which may be further in front, and not have all of its rows."""
        found = self.point.places(evaluation.word(branch, word))
        if not found and self.point.held is not None:
            raise SiteError(
                f"{word!r} has no row at {self.point.name}, which holds the first "
                f"{self.point.held} tokens of the text: others come by another argument; ask "
                "for it where the blocks read the text"
            )
        return found

    def index(
        self, evaluation: Evaluation, branch: str, lengths: Mapping[str, int]
    ) -> Mapping[str, Indices | None]:
        """The selected indices by axis name; missing or None is the whole axis."""
        return self.selection(evaluation, branch, lengths).index

    def shape(self, evaluation: Evaluation, branch: str, rows: slice) -> tuple[int, ...] | None:
        """What the hook will see, None where the weights do not tell."""
        lengths = evaluation.tokens(self.point.level)
        whole = self.point.shape(lengths, batch=rows.stop - rows.start)
        if None in whole:
            return None
        index = self.index(evaluation, branch, lengths)
        sizes = zip(self.point.axes, whole, strict=True)
        return tuple(size_of(index.get(axis), size or 0) for axis, size in sizes)

    def context(
        self,
        evaluation: Evaluation,
        branch: str,
        lengths: Mapping[str, int],
        *,
        owned: bool,
    ) -> HookContext:
        """What the hook is told."""
        selection = self.selection(evaluation, branch, lengths)
        return HookContext(
            name=self.point.name,
            block=self.point.block,
            stream=self.point.stream,
            axes=self.point.axes,
            step=evaluation.step,
            branch=branch,
            heads=selection.heads,
            streams=selection.streams.get("key", selection.streams.get("pos", {})),
            queries=selection.streams.get("query", {}),
            whole=selection.whole,
            owned=owned,
            part=selection.part,
            point=self.point,
            evaluation=evaluation,
        )


def _stream_parts(
    sequence: Sequence[str], lengths: Mapping[str, int], index: Indices | None
) -> dict[str, slice | tuple[int, ...]]:
    """Where each stream lies in what is left of an axis after a selection."""
    found: dict[str, slice | tuple[int, ...]] = {}
    start = 0
    kept = None if index is None else numbers(index, sum(lengths[name] for name in sequence))
    for name in sequence:
        stop = start + lengths[name]
        if kept is None:
            found[name] = slice(start, stop)
        else:
            places = tuple(place for place, at in enumerate(kept) if start <= at < stop)
            if places:
                found[name] = contiguous(places) or places
        start = stop
    return found


def firing_order(
    taps: Sequence[Tap], evaluation: Evaluation, rows: Rows
) -> Iterator[tuple[Tap, str, slice]]:
    """Every (tap, branch, rows) that fires now, in the order of the taps."""
    for tap in taps:
        for branch, at in rows:
            if tap.active(evaluation, branch):
                yield tap, branch, at


def axis_part(axes: Sequence[str], index: Mapping[str, Indices | None]) -> Part:
    """Indices by axis name as a part; whole axes are left out."""
    found = ((axes.index(name), at) for name, at in index.items() if name in axes)
    return tuple((dim, at) for dim, at in found if at is not None)


def expand(
    registrations: Sequence[Registration],
    points: Mapping[str, HookPoint],
    *,
    model: str,
    branches: Sequence[str],
    asked_for: Callable[[Any], Mapping[str, HookPoint]] | None = None,
) -> dict[str, list[Tap]]:
    """Every registration at every point that its Site selects; readers come last at each.

    Raises:
        UnknownHookPointError: If a name matches nothing.
        SiteError: If the names match but the other selectors fit none of the points.
    """
    taps: dict[str, list[Tap]] = {}
    for registration in registrations:
        _refuse_unknown_branch(registration.site, branches)
        name = registration.site.name
        known = points if asked_for is None else asked_for(name) or points
        names = match_names(name, list(known), model=model)
        fitting = [known[name] for name in names if selects(known[name], registration.site)]
        if not fitting:
            raise SiteError(_fits_nothing(registration, known[names[0]], len(names)))
        for point in fitting:
            tap = Tap(registration, point, heads_in(point, registration.site))
            taps.setdefault(point.name, []).append(tap)
        _refuse_missing_pairs(registration.site, fitting)
    for found in taps.values():
        found.sort(key=lambda tap: tap.registration.read_only)
    return taps


def _refuse_unknown_branch(site: Site, branches: Sequence[str]) -> None:
    if site.branch is not None and site.branch not in branches:
        near = closest(site.branch, branches, count=1)
        hint = f" Closest: {near[0]!r}." if near else ""
        raise SiteError(
            f"{site!r} names the branch {site.branch!r}, this model has {tuple(branches)}.{hint} "
            "Leave branch= out for each in turn; a cache takes branch='all'."
        )


def _refuse_missing_pairs(site: Site, fitting: Sequence[HookPoint]) -> None:
    """Every (block, head) pair must have a block among the points."""
    blocks = {point.block for point in fitting}
    pairs = [pair for pair in site.heads or () if isinstance(pair, tuple)]
    missing = [pair for pair in pairs if pair[0] not in blocks]
    if missing:
        known = sorted(block for block in blocks if block is not None)
        raise SiteError(
            f"{site!r} names the (block, head) pair {missing[0]}, but matches only the blocks "
            f"{listing(known)}; widen the name or leave the pair out"
        )


def _fits_nothing(registration: Registration, first: HookPoint, count: int) -> str:
    asked = {"query": registration.site.query, "key": registration.site.key}
    asked["pos"] = registration.site.pos
    absent = [axis for axis, tokens in asked.items() if tokens and axis not in first.axes]
    if absent:
        others = [axis for axis in first.axes if axis in asked]
        return (
            f"{registration.site!r} selects nothing: it selects along {absent[0]!r}, which "
            f"{first.name} has not (axes {first.axes}); its token axes are {others or 'none'}"
        )
    streams = {axis: list(names) for axis, names in first.sequences.items()}
    heads = "no head axis" if first.heads is None else counted(first.heads, "head")
    return (
        f"{registration.site!r} selects nothing: {count} names match, but none has such tokens or "
        f"heads; {first.name} has axes {first.axes}, streams {streams}, {heads}"
    )
