"""`--help` of every command is readable where a terminal has 80 columns."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from diffusion_lens.cli import app

WIDTH, LEAST = 80, 30
ROW = re.compile(r"^  (?P<name>\S.*?)  +(?P<text>\S.*)$|^ {3,}(?P<more>\S.*)$")


def commands(group: Any, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield before, group
    for name, one in getattr(group, "commands", {}).items():
        yield from commands(one, *before, name)


EVERY = list(commands(typer.main.get_command(app)))


def shown(path: tuple[str, ...]) -> str:
    result = CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    return result.output


def columns(text: str) -> set[int]:
    """Where what options, arguments and commands say begins."""
    rows = text[re.search(r"^(Arguments|Options):$", text, re.MULTILINE).start() :].splitlines()  # type: ignore[union-attr]
    found = [match for row in rows if (match := ROW.match(row))]
    return {match.start("text" if match["text"] else "more") for match in found}


@pytest.mark.parametrize(("path", "command"), EVERY, ids=[" ".join(path) for path, _ in EVERY])
def test_help_fits_a_terminal_and_leaves_room_for_its_texts(
    path: tuple[str, ...], command: Any
) -> None:
    text = shown(path)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert max(columns(text)) <= WIDTH - LEAST
    written = "".join(text.split())  # lines break at blanks and at hyphens
    for parameter in command.params:
        assert "".join((parameter.help or "").split()) in written
        assert all(name in written for name in parameter.opts if name.startswith("--"))
    for one in getattr(command, "commands", {}).values():
        assert "".join((one.short_help or one.help).split()) in written
        assert "..." not in one.short_help


def test_concepts_are_shown_as_they_are_given() -> None:
    for path, example in (
        (("hrv", "build"), '{"Colour": ["red", "blue"], "Shape": ["circle", "square"]}'),
        (("concept-attention",), '--concepts "red circle" --concepts background'),
    ):
        assert "".join(example.split()) in "".join(shown(path).split())


def test_choices_of_concept_attention_are_those_that_there_are() -> None:
    from diffusion_lens.analyses.concept_attention import presets

    said = "".join(shown(("concept-attention",)).split())
    for known in (presets.PRESETS, presets.SPACES, presets.SOFTMAX):
        *names, last = known
        assert f"{','.join(names)}or{last}" in said
