"""A Site: part of a hook point, as a value with a text form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, cast

from diffusion_lens.border import public
from diffusion_lens.errors import SiteError, closest
from diffusion_lens.hook_points import site_text
from diffusion_lens.hook_points.names import NamePattern
from diffusion_lens.hook_points.selectors import (
    Heads,
    Indices,
    Tokens,
    branch_of,
    heads_of,
    steps_of,
    tokens_of,
)
from diffusion_lens.hook_points.selectors import contains as step_is_in


@dataclass(frozen=True, init=False)
class Site:
    """Which part of which hook points, at which steps, in which guidance branch.

    A hook on a Site sees only that part (selected axes are kept), and its edit goes back to only
    that part. Sites are accepted wherever names are, and a text form stands for a Site.

    Attributes:
        name: Hook-point name; `*` matches one dotted part, `**` any number; or a predicate.
        steps: Steps of the scheduler, counted from 0 (never timesteps).
        branch: `"cond"`, `"uncond"` or another guidance branch; None for each branch in turn, or
            for `"cond"` where words are named.
            Points after guidance, where the branches are one, fire whatever is given here.
        heads: Head indices, or (block, head) pairs where blocks differ.
        query: Part of the query axis of scores and patterns.
        key: Part of their key axis.
        pos: Part of the token axis of everything else.

    `query`, `key` and `pos` take a stream (`"img"`), a word of the prompt or several, indices, or
    a stream with one of these: `("txt", "cat")`. Words are looked up in the prompt of the branch
    that runs; the unconditional prompt is usually empty, so words usually need `branch="cond"`.

    Examples:
        >>> str(Site("blocks.3.cross_attn.img.hook_z", heads=5, steps=range(10, 20)))
        'blocks.3.cross_attn.img.hook_z[head=5,step=10:20]'
    """

    name: NamePattern
    steps: Indices | None
    branch: str | None
    heads: Heads | None
    query: Tokens | None
    key: Tokens | None
    pos: Tokens | None

    def __init__(
        self,
        name: NamePattern,
        *,
        steps: object = None,
        branch: object = None,
        heads: object = None,
        query: object = None,
        key: object = None,
        pos: object = None,
        **unknown: object,
    ) -> None:
        """Make a Site; every selector is brought into its normal form.

        Raises:
            SiteError: If a selector is malformed or selects nothing.
        """
        if unknown:
            raise SiteError(_unknown_selector(next(iter(unknown))))
        if not callable(name) and (not isinstance(name, str) or not name.strip()):
            raise SiteError(f"a Site needs the name of a hook point, got {name!r}")
        if isinstance(name, str) and "[" in name:
            raise SiteError(f"{name!r} is a Site's text form: read it with `Site.parse(...)`")
        values = {
            "name": name.strip() if isinstance(name, str) else name,
            "steps": steps_of(steps),
            "branch": branch_of(branch),
            "heads": heads_of(heads),
            "query": tokens_of(query, "query"),
            "key": tokens_of(key, "key"),
            "pos": tokens_of(pos, "pos"),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @classmethod
    @public
    def parse(cls, text: str) -> Site:
        """Read a Site from its text form.

        Raises:
            SiteError: If the text is no Site; the message shows where and an example.
        """
        name, selectors = site_text.parse(text)
        return cls(name, **selectors)

    @classmethod
    def of(cls, given: Any) -> Site:
        """A Site from a Site, a name, a predicate over names, or a text form."""
        if isinstance(given, Site):
            return given
        if isinstance(given, str) and "[" in given:
            return cls.parse(given)
        if isinstance(given, str) or callable(given):
            return cls(cast("NamePattern", given))
        raise SiteError(
            f"a Site is needed, got {type(given).__name__} {given!r}; give a hook-point name, "
            'a text form such as "blocks.0.attn.hook_pattern[head=5]", or Site(...)'
        )

    def with_(self, **changes: Any) -> Site:
        """The same Site with some selectors replaced."""
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        return Site(**(values | changes))

    def has_step(self, step: int) -> bool:
        """Whether a step belongs to this Site."""
        return step_is_in(self.steps, step)

    @property
    def part(self) -> tuple[object, ...]:
        """What it selects of an activation, apart from where and when."""
        return (self.heads, self.query, self.key, self.pos)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the prompt that it names."""
        selected = [tokens for tokens in (self.query, self.key, self.pos) if tokens is not None]
        return tuple(word for tokens in selected for word in tokens.words)

    def fires_in(self, branch: str) -> bool:
        """Whether a guidance branch belongs to this Site.

        With words and no branch it is the conditional one, whose prompt the words are from.
        """
        if self.branch is None:
            return branch == "cond" if self.words else True
        return self.branch == branch

    def __hash__(self) -> int:
        """That of the repr, since slices have none before Python 3.12."""
        return hash(repr(self))

    def __str__(self) -> str:
        """The text form, which `Site.parse` reads back to an equal Site."""
        return site_text.render(self)

    def __repr__(self) -> str:
        """Readable in a report: the text form, or the predicate's own repr."""
        if callable(self.name):
            return f"Site({self.name!r}{site_text.selectors_text(self)})"
        return f"Site.parse({str(self)!r})"


def _unknown_selector(given: str) -> str:
    """What to say of an argument that is none, such as one of the text form's."""
    selectors = [one.name for one in fields(Site)[1:]]
    near = site_text.FIELDS.get(given) or next(iter(closest(given, selectors, cutoff=0.6)), None)
    hint = "" if near is None else f" Closest: {near}=."
    return f"a Site has no selector {given}=.{hint} It takes {', '.join(selectors)}."


Where = str | Site | Callable[[str], bool]
"""What `Site.of` reads: a name, a pattern, a text form, a Site, or a predicate over names."""

Sites = Where | Iterable[Any]
"""One of them, or several; `Site.of` refuses what is none."""
