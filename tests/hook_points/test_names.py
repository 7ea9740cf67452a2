"""Patterns over names."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lens.errors import UnknownHookPointError, closest, listing
from diffusion_lens.hook_points import HookContext, HookPoint, match_names
from diffusion_lens.hook_points.names import block_of, matches

NAMES = [
    "hook_latents",
    "blocks.0.attn.hook_pattern",
    "blocks.0.img.hook_resid_post",
    "blocks.1.cross_attn.img.hook_z",
    "blocks.10.attn.hook_pattern",
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**", NAMES),
        ("*", NAMES[:1]),
        ("hook_latents", NAMES[:1]),
        ("blocks.*.attn.hook_pattern", [NAMES[1], NAMES[4]]),
        ("blocks.1*.attn.hook_pattern", [NAMES[4]]),
        ("**.hook_pattern", [NAMES[1], NAMES[4]]),
        ("blocks.**", NAMES[1:]),
        ("blocks.0.**", NAMES[1:3]),
        ("blocks.**.hook_z", [NAMES[3]]),
        ("**.img.**", NAMES[2:4]),
        ("blocks.1.**.hook_z", [NAMES[3]]),
        ("blocks.1.cross_attn.img.**.hook_z", [NAMES[3]]),
        ("blocks.*.*.hook_*", [NAMES[1], NAMES[2], NAMES[4]]),
        (["hook_latents", "**.hook_z"], [NAMES[0], NAMES[3]]),
        (["**.hook_z", "hook_latents"], [NAMES[0], NAMES[3]]),
        pytest.param(lambda name: name.endswith("z"), [NAMES[3]], id="a predicate"),
    ],
    ids=str,
)
def test_patterns_select_names_in_the_models_order(pattern: object, found: list[str]) -> None:
    assert match_names(pattern, NAMES) == found  # type: ignore[arg-type]


def reference(pattern: list[str], name: list[str]) -> bool:
    """What the page says of patterns, tried in every way."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(reference(pattern[1:], name[cut:]) for cut in range(len(name) + 1))
    return bool(name) and part(pattern[0], name[0]) and reference(pattern[1:], name[1:])


def part(pattern: str, text: str) -> bool:
    if not pattern or not text:
        return not text and not pattern.strip("*")
    if pattern[0] == "*":
        return part(pattern[1:], text) or part(pattern, text[1:])
    return pattern[0] == text[0] and part(pattern[1:], text[1:])


few_letters = st.text("ab", min_size=1, max_size=3)


@settings(max_examples=150)
@given(
    pattern=st.lists(
        st.sampled_from(["**", "*", "***"]) | st.text("ab*", min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    ),
    name=st.lists(few_letters, min_size=1, max_size=5),
)
def test_patterns_match_as_if_every_way_was_tried(pattern: list[str], name: list[str]) -> None:
    assert matches(".".join(pattern), ".".join(name)) == reference(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("blocks.*." + "*" * 20_000 + "zz", "blocks.0." + "a" * 40),
        ("*a" * 30 + "z", "a" * 60),
        ("*a*b" * 15 + "*z", "ab" * 40),
        ("**." * 30 + "z", "a." * 40 + "a"),
        ("**.a." * 15 + "z", "a." * 40 + "a"),
    ],
    ids=["stars in a row", "stars and letters", "two letters", "any parts", "parts between"],
)
def test_no_pattern_takes_long(pattern: str, name: str) -> None:
    start = time.perf_counter()
    assert not matches(pattern, name)
    assert time.perf_counter() - start < 2


def test_the_block_of_a_name() -> None:
    assert block_of("blocks.12.cross_attn.img.hook_z") == ("blocks.", 12)
    assert block_of("denoiser2.blocks.3.img.hook_resid_post") == ("denoiser2.blocks.", 3)
    assert block_of("refiner.0.attn.hook_pattern") == ("refiner.", 0)
    assert block_of("hook_latents") is None


def test_dots_in_names_are_dots() -> None:
    assert not matches("blocks.0", "blocksx0")
    assert not matches("a.**.b", "axb")
    assert not matches("blocks.0.**", "blocks.01.x")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "blocks.0.attn.hook_patern",
            "no hook point matches 'blocks.0.attn.hook_patern' in TinyModel (5 hook points). "
            "Closest: blocks.0.attn.hook_pattern, blocks.10.attn.hook_pattern, ",
        ),
        (
            "hook_latent",
            "Closest: hook_latents, blocks.0.attn.hook_pattern, blocks.10.attn.hook_pattern. "
            "List them with `model.hook_names()`.",
        ),
        ("blocks.*.attn.hook_patern", "Closest: blocks.0.attn.hook_pattern"),
        (str.isupper, "no hook point matches the predicate"),
        (["hook_latents", "zzz"], "no hook point matches 'zzz'"),
    ],
)
def test_a_pattern_without_matches_is_refused(pattern: object, message: str) -> None:
    with pytest.raises(UnknownHookPointError, match=re.escape(message)):
        match_names(pattern, NAMES, model="TinyModel")  # type: ignore[arg-type]


def test_listings_are_cut() -> None:
    assert listing([1, 2, 3]) == "1, 2, 3"
    assert listing(list(range(12)), most=3) == "0, 1, 2, … (9 more)"
    assert closest("hook_latent", NAMES)[0] == "hook_latents"


def context(**more: object) -> HookContext:
    given = {"block": None, "stream": None, "axes": ("batch", "pos"), "step": 0, "branch": "cond"}
    return HookContext(name="hook_latents", **(given | more))  # type: ignore[arg-type]


def test_a_context_names_its_layer_and_axes() -> None:
    assert context(block=3).layer() == 3
    assert context().axis("pos") == 1
    with pytest.raises(ValueError, match="hook_latents lies outside the blocks and has no layer"):
        context().layer()
    with pytest.raises(ValueError, match=r"has no axis 'head', its axes are \('batch', 'pos'\)"):
        context().axis("head")


@pytest.mark.parametrize("what", ["timestep", "sigma", "grid", "words"])
def test_a_context_without_a_model_says_so(what: str) -> None:
    with pytest.raises(ValueError, match="belongs to no running denoiser"):
        getattr(context(), what)


def test_the_size_of_a_point_follows_its_tokens() -> None:
    point = HookPoint(
        "p",
        ("batch", "head", "query", "key"),
        None,
        "attn",
        heads=4,
        sequences={"query": ("img",), "key": ("img", "txt")},
        sizes={"head": 4},
    )
    assert point.shape({"img": 6, "txt": 2}, batch=3) == (3, 4, 6, 8)
    assert point.elements({"img": 6, "txt": 2}, batch=3) == 3 * 4 * 6 * 8
    assert point.shape({"img": 6}, batch=1) == (1, 4, 6, None)
    assert point.elements({"img": 6}, batch=1) is None
