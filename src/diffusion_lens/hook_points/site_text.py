r"""The text form of a Site: `blocks.3.attn.hook_pattern[head=5|7,step=10:20,key=txt("cat")]`.

Values are joined by `|`; a range is `start:stop` or `start:stop:step` with open ends allowed; a
(block, head) pair is `(3,5)`; words stand in double quotes; a stream stands alone or with a part of
it in parentheses.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from diffusion_lens.errors import SiteError
from diffusion_lens.hook_points.selectors import STREAMS, Indices, Tokens

if TYPE_CHECKING:
    from diffusion_lens.hook_points.site import Site

EXAMPLE = 'blocks.3.attn.hook_pattern[head=5|7,step=10:20,branch=cond,key=txt("cat")]'
FIELDS = {
    "head": "heads",
    "step": "steps",
    "branch": "branch",
    "query": "query",
    "key": "key",
    "pos": "pos",
}
WORD = r"[A-Za-z_]\w*"
NUMBER = r"-?\d+"
TOKEN = re.compile(
    rf'\s*("(?:[^"\\]|\\.)*"|(?:{NUMBER})?:(?:{NUMBER})?(?::\d+)?|{NUMBER}|{WORD}|[=,|()])'
)


def render(site: Site) -> str:
    """The text form of a Site.

    Raises:
        SiteError: If its name is a predicate, which has no text form.
    """
    if callable(site.name):
        raise SiteError(f"a Site over the predicate {site.name!r} has no text form; use a name")
    return site.name + selectors_text(site)


def selectors_text(site: Site) -> str:
    """The part in brackets, empty where nothing is selected."""
    values = {
        "head": None if site.heads is None else "|".join(_head(head) for head in site.heads),
        "step": None if site.steps is None else _indices(site.steps),
        "branch": None if site.branch is None else _name(site.branch),
        "query": _tokens(site.query),
        "key": _tokens(site.key),
        "pos": _tokens(site.pos),
    }
    inner = ",".join(f"{field}={value}" for field, value in values.items() if value is not None)
    return f"[{inner}]" if inner else ""


def _head(head: int | tuple[int, int]) -> str:
    return str(head) if isinstance(head, int) else f"({head[0]},{head[1]})"


def _name(branch: str) -> str:
    return branch if re.fullmatch(WORD, branch) else json.dumps(branch, ensure_ascii=False)


def _indices(indices: Indices) -> str:
    if isinstance(indices, slice):
        ends = ["" if end is None else str(end) for end in (indices.start, indices.stop)]
        return ":".join(ends + ([str(indices.step)] if indices.step not in (None, 1) else []))
    return "|".join(map(str, indices))


def _tokens(tokens: Tokens | None) -> str | None:
    if tokens is None:
        return None
    words = "|".join(json.dumps(word, ensure_ascii=False) for word in tokens.words)
    part = words or ("" if tokens.indices is None else _indices(tokens.indices))
    if tokens.stream is None:
        return part
    return f"{tokens.stream}({part})" if part else tokens.stream


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split a text form into the name and the keyword arguments of `Site`.

    Raises:
        SiteError: If the text cannot be read.
    """
    name, bracket, inner = text.strip().partition("[")
    if not bracket:
        return name, {}
    if not inner.endswith("]"):
        raise SiteError(f"{text!r} has no closing ']'; an example is {EXAMPLE}")
    return name, _Reader(inner[:-1], text).fields()


class _Reader:
    """A cursor over the tokens between the brackets."""

    def __init__(self, inner: str, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        inner, position = inner.rstrip(), 0
        while position < len(inner):
            found = TOKEN.match(inner, position)
            if found is None:
                raise self.error(f"cannot read {inner[position:]!r}")
            self.tokens.append(found.group(1))
            position = found.end()

    def error(self, problem: str) -> SiteError:
        return SiteError(f"in {self.text!r}: {problem}; an example is {EXAMPLE}")

    def take(self, expected: str | None = None) -> str:
        if not self.tokens or (expected is not None and self.tokens[0] != expected):
            found = repr(self.tokens[0]) if self.tokens else "the end"
            raise self.error(f"expected {expected or 'a value'!r}, found {found}")
        return self.tokens.pop(0)

    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while True:
            field = self.take()
            if field not in FIELDS:
                raise self.error(f"unknown selector {field!r}, the valid ones are {list(FIELDS)}")
            if FIELDS[field] in found:
                raise self.error(f"{field!r} is given twice")
            self.take("=")
            found[FIELDS[field]] = self.branch() if field == "branch" else self.value()
            if not self.tokens:
                return found
            self.take(",")

    def branch(self) -> str:
        token = self.take()
        if token.startswith('"'):
            return self.word(token)
        if not re.fullmatch(WORD, token):
            raise self.error(f"{token!r} is no branch's name; put other names into quotes")
        return token

    def value(self, *, inside: bool = False) -> object:
        quoted = bool(self.tokens) and self.tokens[0].startswith('"')
        items = [self.item(inside=inside)]
        while self.tokens and self.tokens[0] == "|":
            self.take("|")
            items.append(self.item(inside=inside))
        if len(items) == 1 and items[0] in STREAMS and quoted:
            return items
        if len(items) == 1 and not isinstance(items[0], tuple):
            return items[0]
        if len(items) == 1 and items[0][0] in STREAMS:
            return items[0]
        if any(isinstance(item, slice) for item in items):
            raise self.error("a range cannot be joined with '|'")
        return items

    def item(self, *, inside: bool) -> Any:
        token = self.take()
        if token == "(":
            block = self.integer()
            self.take(",")
            head = self.integer()
            self.take(")")
            return (block, head)
        if token.startswith('"'):
            return self.word(token)
        if ":" in token:
            return slice(*(self.number(end) if end else None for end in token.split(":")))
        if re.fullmatch(NUMBER, token):
            return self.number(token)
        if token in STREAMS and inside:
            raise self.error(f"the stream {token!r} stands inside another")
        if token in STREAMS:
            if self.tokens and self.tokens[0] == "(":
                self.take("(")
                inner = self.value(inside=True)
                self.take(")")
                return (token, inner)
            return token
        raise self.error(f"{token!r} is no stream ({', '.join(STREAMS)}); put words into quotes")

    def integer(self) -> int:
        token = self.take()
        if not re.fullmatch(NUMBER, token):
            raise self.error(f"expected a number, found {token!r}")
        return self.number(token)

    def number(self, token: str) -> int:
        try:
            return int(token)
        except ValueError as error:  # of thousands of digits
            raise self.error(f"cannot read a number of {len(token)} characters") from error

    def word(self, token: str) -> str:
        try:
            return json.loads(token)
        except ValueError as error:
            raise self.error(f"cannot read {token} ({error})") from error
