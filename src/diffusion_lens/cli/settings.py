"""`--set NAME=VALUE`: arguments of the pipeline's call, as far as a command line can give them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer

from diffusion_lens.border.hints import test_of
from diffusion_lens.border.settings import HINTS
from diffusion_lens.border.wording import told

OWN = {
    "self": "the argument MODEL",
    "prompt": "the argument PROMPT",
    "seed": "--seed",
    "generator": "--seed",
}
"""What the commands give themselves, and where it is said."""

OBJECTS = ("latents", "embeds", "image", "callback", "callback_on_step_end", "attention_mask")
"""Ends of the names of arguments that are tensors, pictures or functions, which no text is."""


def settings(given: list[str] | None) -> list[str] | None:
    """Every `--set`, if pipelines can take it.

    Raises:
        typer.BadParameter: If one is of another form, comes twice, is given by another option, or
            cannot be what it has to be.
    """
    names = [pair(one)[0] for one in given or ()]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise typer.BadParameter(f"{twice[0]} is given twice; give it once")
    return given


def pair(given: str) -> tuple[str, Any]:
    """The name and the value of one; a value that is no json is text.

    Raises:
        typer.BadParameter: If it is of another form, or cannot be what it has to be.
    """
    name, equals, text = given.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(
            f"{given!r} is not of the form NAME=VALUE, such as --set height=512"
        )
    if name in OWN:
        raise typer.BadParameter(f"{given!r}: the {name} is given by {OWN[name]}")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = text
    wrong = _wrong(name, value)
    if wrong:
        raise typer.BadParameter(f"{given!r}: {wrong}")
    return name, value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _wrong(name: str, value: Any) -> str:
    """Why a setting cannot have this value; empty if it can."""
    if value is None:
        return ""
    if name.endswith(OBJECTS):
        return f"{name} is no text or number; give it in Python, `model(prompt, {name}=…)`"
    if name == "output_type" and value != "pil":
        return "commands write images; leave it out, or ask for it in Python"
    if name in HINTS and not test_of(HINTS[name])(value):
        return f"{name} takes {told(HINTS[name])}, got {value!r}"
    return f"{name} is an empty list; leave it out" if value == [] else ""


def refuse_given_twice(named: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse what is given both by an option of its own and by `--set`.

    Raises:
        typer.BadParameter: Naming both.
    """
    for name in named:
        if name in given:
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"{option} and --set {name}= were both given; give one")
