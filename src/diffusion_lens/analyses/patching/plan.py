"""From sites and axes to a grid of cells: which parts of which hook points each patch replaces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.patching.alignment import Alignment
from diffusion_lens.authoring import heads_in, selects
from diffusion_lens.errors import PatchingError, closest, listing
from diffusion_lens.hook_points import HookPoint, Indices, Tokens

AXES = ("block", "stream", "attention", "point", "head", "pos")
Label = int | str | None


@dataclass(frozen=True)
class Change:
    """Part of one hook point that a patch replaces.

    Attributes:
        name: The hook point.
        heads: Heads, or None for all that the Site has.
        pos: Positions of the base's stream, or None for all.
        source_pos: The source's positions that belong to them.
    """

    name: str
    heads: tuple[int, ...] | None = None
    pos: Indices | None = None
    source_pos: Indices | None = None


@dataclass(frozen=True)
class Cell:
    """One patch: its index in the grid and all that it replaces at once."""

    index: tuple[int, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Plan:
    """All patches of a sweep.

    Attributes:
        axes: Names of the grid's axes.
        labels: What each entry along an axis stands for.
        cells: The patches; places of the grid without one stay empty.
        sites: For each hook point, what hooks and caches address: steps, branch, query and key.
        points: Those hook points.
        left_out: Hook points that cannot matter, with the reason.
    """

    axes: tuple[str, ...]
    labels: Mapping[str, tuple[Any, ...]]
    cells: tuple[Cell, ...]
    sites: Mapping[str, Site]
    points: Mapping[str, HookPoint]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the grid."""
        return tuple(len(self.labels[axis]) for axis in self.axes)

    @property
    def modules(self) -> dict[int, str]:
        """The native module of each block, where all that is patched in it is read at one."""
        found: dict[int, set[str]] = {}
        for point in self.points.values():
            if point.block is not None:
                found.setdefault(point.block, set()).add(point.module)
        return {block: next(iter(some)) for block, some in found.items() if len(some) == 1}


def plan(
    model: HookedDiffusion,
    sites: Any,
    axes: Sequence[str],
    *,
    alignment: Alignment,
    base: Run,
    positions: Sequence[str | int] | None,
    branch: str | None,
) -> Plan:
    """Lay out a sweep.

    Args:
        model: The model.
        sites: Names, patterns or Sites; all together are what is patched.
        axes: Which of `AXES` are patched apart; what is not among them is patched at once.
        alignment: Which tokens of the prompts belong to each other.
        base: The run that is patched.
        positions: Along `pos`: words of the base's prompt, or positions; None for all its words.
        branch: Guidance branch, where a Site does not say it.

    Raises:
        PatchingError: If axes are unknown or do not fit the sites, or nothing is left to replace.
    """
    _refuse_unknown_axes(axes)
    listed = [sites] if isinstance(sites, str | Site) or callable(sites) else list(sites)
    found: dict[tuple[Label, ...], list[Change]] = {}
    fixed: dict[str, Site] = {}
    points: dict[str, HookPoint] = {}
    left_out: dict[str, str] = {}
    places = _positions(model, alignment, base, positions) if "pos" in axes else {}
    for site in map(Site.of, listed):
        blocks: set[int | None] = set()
        for name, point in model.find_points(site.name).items():
            if name.startswith("denoiser2."):
                raise PatchingError(
                    f"{name} is of a second denoiser, which is not evaluated again here; wrap the "
                    "pipeline for it alone: `HookedDiffusion(pipe, denoiser=…)`"
                )
            if not selects(point, site):
                continue
            blocks.add(point.block)
            if point.dead is not None:
                left_out[name] = point.dead
                continue
            if name in fixed:
                raise PatchingError(f"{name} is selected by two of the sites; join them into one")
            points[name] = point
            fixed[name] = _fixed(model, site, point, alignment, base, branch)
            for labels, change in _changes(model, site, point, axes, alignment, base, places):
                found.setdefault(labels, []).append(change)
        _refuse_missing_blocks(site, blocks)
    if not found:
        why = listing([f"{name}: {reason}" for name, reason in left_out.items()], most=3)
        raise PatchingError(
            f"nothing is left to replace. {why or 'No hook point has what the sites select.'}"
        )
    return _laid_out(axes, found, fixed, points, left_out)


def _refuse_missing_blocks(site: Site, blocks: Collection[int | None]) -> None:
    pairs = [head for head in site.heads or () if isinstance(head, tuple)]
    missing = [pair for pair in pairs if pair[0] not in blocks]
    if missing and blocks:
        known = listing(sorted(block for block in blocks if block is not None))
        raise PatchingError(
            f"{site!r} names the (block, head) pair {missing[0]}, but selects heads of the blocks "
            f"{known} only; widen the name or leave the pair out"
        )


def _refuse_unknown_axes(axes: Sequence[str]) -> None:
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or len(set(axes)) != len(axes):
        near = closest(unknown[0], AXES, count=1) if unknown else []
        hint = f" Closest: {near[0]!r}." if near else ""
        raise PatchingError(
            f"axes={tuple(axes)}: a sweep goes along any of {AXES} and step, each once.{hint}"
        )


def _laid_out(
    axes: Sequence[str],
    found: Mapping[tuple[Label, ...], list[Change]],
    fixed: Mapping[str, Site],
    points: Mapping[str, HookPoint],
    left_out: Mapping[str, str],
) -> Plan:
    labels: dict[str, tuple[Label, ...]] = {}
    for number, axis in enumerate(axes):
        seen = list(dict.fromkeys(key[number] for key in found))
        if all(isinstance(label, int) for label in seen):
            seen.sort()  # type: ignore[type-var]
        labels[axis] = tuple(seen)
    cells = tuple(
        Cell(
            tuple(labels[axis].index(label) for axis, label in zip(axes, key, strict=True)),
            tuple(changes),
        )
        for key, changes in found.items()
    )
    return Plan(tuple(axes), labels, cells, fixed, points, left_out)


def _changes(
    model: HookedDiffusion,
    site: Site,
    point: HookPoint,
    axes: Sequence[str],
    alignment: Alignment,
    base: Run,
    places: Mapping[str | int, tuple[Indices, Indices]],
) -> list[tuple[tuple[Label, ...], Change]]:
    """Every cell that a hook point has a part in, by its labels."""
    whole = Change(point.name, None, *_selected_positions(model, site, point, alignment, base))
    label: dict[str, Callable[[], Label]] = {
        "block": lambda: _block(point),
        "stream": lambda: point.stream or "joint",
        "attention": lambda: _quantity(point).split(".")[0],
        "point": lambda: _quantity(point),
    }
    parts: list[tuple[dict[str, Label], Change]] = [({}, whole)]
    if "head" in axes:
        heads = _heads(site, point)
        parts = [({"head": head}, replace(whole, heads=(head,))) for head in heads]
    elif site.heads is not None:
        parts = [({}, replace(whole, heads=_heads(site, point)))]
    if "pos" in axes:
        _refuse_positions(site, point)
        parts = [
            ({**marks, "pos": word}, replace(part, pos=mine, source_pos=theirs))
            for marks, part in parts
            for word, (mine, theirs) in places.items()
        ]
    return [
        (tuple(marks[axis] if axis in marks else label[axis]() for axis in axes), part)
        for marks, part in parts
    ]


def _block(point: HookPoint) -> int:
    if point.block is None:
        raise PatchingError(
            f"{point.name} lies outside the blocks, so it has no place along 'block'; use 'point'"
        )
    return point.block


def _quantity(point: HookPoint) -> str:
    """The name without the block that it is in."""
    return point.name if point.block is None else point.name.split(".", 2)[2]


def _heads(site: Site, point: HookPoint) -> tuple[int, ...]:
    if point.heads is None:
        raise PatchingError(
            f"{point.name} has no heads (axes {point.axes}); heads exist at hook_q, hook_k, "
            "hook_v, hook_pattern, hook_z and hook_result"
        )
    chosen = heads_in(point, site)
    return tuple(range(point.heads)) if chosen is None else chosen


def _selected_positions(
    model: HookedDiffusion, site: Site, point: HookPoint, alignment: Alignment, base: Run
) -> tuple[Indices | None, Indices | None]:
    """What a Site selects along `pos`, for base and source."""
    if "pos" not in point.axes:
        if site.pos is not None:
            raise PatchingError(f"{site!r} selects along pos, which {point.name} has not")
        return None, None
    if point.stream != "txt":
        index = None if site.pos is None else _indices(site.pos, point)
        return index, index
    if site.pos is None:
        if alignment.tokens is None:
            return None, None
        return tuple(alignment.tokens), tuple(alignment.tokens.values())
    if site.pos.words:
        mine = _word_positions(model, base, site.pos.words)
        return mine, alignment.sources(mine, what=repr(site))
    index = _indices(site.pos, point)
    if alignment.tokens is None or index is None:
        return index, index
    if isinstance(index, slice):
        raise PatchingError(f"{site!r}: give single positions where prompts are not alike")
    return index, alignment.sources(index, what=repr(site))


def _indices(tokens: Tokens, point: HookPoint) -> Indices | None:
    if tokens.words or tokens.stream not in (None, point.stream):
        raise PatchingError(f"{tokens!r} is not in the stream {point.stream!r} of {point.name}")
    return tokens.indices


def _word_positions(model: HookedDiffusion, base: Run, words: Sequence[str]) -> tuple[int, ...]:
    if not base.prompts:
        raise PatchingError(f"no prompt was given to look up {list(words)}; give positions")
    tokens = model.prompt_tokens(base.prompts[0], run=base)
    found = [position for word in words for position in tokens.find(word)]
    return tuple(dict.fromkeys(found))


def _fixed(
    model: HookedDiffusion,
    site: Site,
    point: HookPoint,
    alignment: Alignment,
    base: Run,
    branch: str | None,
) -> Site:
    """The Site at which base and source are read and replaced; heads and pos come cell by cell."""
    selected = {}
    for axis in ("query", "key"):
        tokens: Tokens | None = getattr(site, axis)
        if tokens is not None and tokens.words:
            selected[axis] = ("txt", _word_positions(model, base, tokens.words))
        elif tokens is not None:
            selected[axis] = tokens
    if alignment.tokens is not None and "query" in point.axes:
        raise PatchingError(
            f"{point.name}: the words of the prompts have different numbers of tokens, so columns "
            "of attention belong to other words, and moving them would leave rows that do not sum "
            "to 1. Word the prompts alike, or patch hook_z"
        )
    return Site(point.name, steps=site.steps, branch=site.branch or branch, **selected)


def _positions(
    model: HookedDiffusion,
    alignment: Alignment,
    base: Run,
    positions: Sequence[str | int] | None,
) -> dict[str | int, tuple[Indices, Indices]]:
    """Label of each entry along `pos`, with its positions in base and source."""
    if positions is not None:
        found: dict[str | int, tuple[Indices, Indices]] = {}
        for one in positions:
            mine = (one,) if isinstance(one, int) else _word_positions(model, base, [one])
            found[one] = (mine, alignment.sources(mine, what="positions="))
        return found
    if not alignment.spans:
        raise PatchingError(
            "axes has 'pos', but no words are known where embeddings were given; give positions="
        )
    found = {}
    for number, (words, mine) in enumerate(zip(alignment.words, alignment.spans, strict=True)):
        label = words[0] if words[0] == words[1] else f"{words[0]} ← {words[1]}"
        label = label if label not in found else f"{label} ({number})"
        found[label] = (mine, alignment.sources(mine, what="pos"))
    return found


def _refuse_positions(site: Site, point: HookPoint) -> None:
    if "pos" not in point.axes or point.stream != "txt":
        raise PatchingError(
            f"{point.name} has no text positions (axes {point.axes}, stream {point.stream!r}); "
            "along 'pos' take text sites such as txt.hook_resid_pre or cross_attn.txt.hook_v"
        )
    if site.pos is not None:
        raise PatchingError(f"{site!r} selects positions, and axes has 'pos': do one of them")
