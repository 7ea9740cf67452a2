"""Patterns over names."""

from __future__ import annotations

import re

import pytest

from diffusion_lens.errors import UnknownHookPointError, closest, listing
from diffusion_lens.hook_points import HookContext, HookPoint, match_names
from diffusion_lens.hook_points.names import matches

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
