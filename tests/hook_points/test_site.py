"""Sites: normal form, text form, and what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffusion_lens import Site
from diffusion_lens.errors import SiteError
from diffusion_lens.hook_points.selectors import STREAMS, Tokens

NAME = "blocks.3.attn.hook_pattern"

counts = st.integers(0, 50)
signed = st.integers(-20, 50)
steps = st.one_of(
    counts,
    st.lists(counts, min_size=1, max_size=4),
    st.tuples(counts, st.integers(1, 9), st.none() | st.integers(1, 3)).map(
        lambda ends: slice(ends[0], ends[0] + ends[1], ends[2])
    ),
    st.builds(lambda start: slice(start, None), counts),
)
heads = st.one_of(
    signed,
    st.lists(signed, min_size=1, max_size=4),
    st.lists(st.tuples(counts, counts), min_size=1, max_size=4),
)
words = st.text(min_size=1).filter(str.strip) | st.sampled_from(STREAMS)
inner = st.one_of(
    signed,
    st.lists(signed, min_size=1, max_size=3),
    st.builds(slice, st.none() | signed, st.none() | signed, st.none() | st.integers(1, 4)),
    st.lists(words, min_size=1, max_size=3).filter(
        lambda found: len(found) == 1 or not set(found) & set(STREAMS)
    ),
)
tokens = st.one_of(
    inner, st.sampled_from(STREAMS), st.tuples(st.sampled_from(STREAMS), inner), st.none()
)


@settings(max_examples=80)
@given(
    name=st.sampled_from([NAME, "**", "native:a.b"]) | st.text(min_size=1, max_size=9),
    steps=st.none() | steps,
    heads=st.none() | heads,
    branch=st.sampled_from([None, "cond", "uncond", "skip"]) | st.text(max_size=6),
    query=tokens,
    key=tokens,
    pos=tokens,
)
def test_the_text_form_round_trips(name: str, branch: str | None, **selectors: Any) -> None:
    assume("[" not in name and name.strip() and (branch is None or branch.strip()))
    site = Site(name, branch=branch, **selectors)
    assert Site.parse(str(site)) == site and hash(Site.parse(str(site))) == hash(site)
    assert eval(repr(site), {"Site": Site}) == site
    assert Site.of(str(site)) == site


@settings(max_examples=150)
@given(
    st.text(max_size=30)
    | st.builds(
        lambda field, value: f"{NAME}[{field}={value}]",
        st.sampled_from(["head", "step", "branch", "query", "key", "pos", "x"]),
        st.text('0123456789:|(),"ab\\-imgtx ', max_size=12),
    )
)
def test_any_text_is_a_site_or_is_refused(text: str) -> None:
    with contextlib.suppress(SiteError):
        assert Site.parse(str(Site.parse(text))) == Site.parse(text)


@pytest.mark.parametrize("selector", ["steps", "query", "key", "pos"])
def test_a_slice_with_step_one_is_one_without(selector: str) -> None:
    for given_slice in (slice(2, 5, 1), slice(2, None, 1), slice(np.int64(2), torch.tensor(5))):
        site = Site(NAME, **{selector: given_slice})
        assert Site.parse(str(site)) == site
        plain = slice(2, None if given_slice.stop is None else 5)
        assert site == Site(NAME, **{selector: plain})


def test_branches_of_any_name_and_names_with_blanks_have_text_forms() -> None:
    for branch in ("no-text", "image 2", "3", 'a "b"', "cond]", "úz", "a,b"):
        site = Site(NAME, branch=branch, heads=3)
        assert Site.parse(str(site)) == site
    assert Site(f" {NAME}\n") == Site(NAME)


@pytest.mark.parametrize(
    ("branch", "name"),
    [
        ("conditional", "cond"),
        ("Cond", "cond"),
        ("positive", "cond"),
        ("unconditional", "uncond"),
        ("negative", "uncond"),
        (" UNCOND ", "uncond"),
    ],
)
def test_other_words_for_the_branches_are_refused_when_made(branch: str, name: str) -> None:
    with pytest.raises(SiteError, match=f"this branch is called {name!r}, give branch={name!r}"):
        Site(NAME, branch=branch)
    with pytest.raises(SiteError, match=f"give branch={name!r}"):
        Site(NAME).with_(branch=branch)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("head", r"a Site has no selector head=. Closest: heads=. It takes steps, branch, heads,"),
        ("step", "Closest: steps="),
        ("keys", "Closest: key="),
        ("zzz", r"no selector zzz=. It takes"),
    ],
)
def test_an_unknown_selector_is_refused_with_the_closest(selector: str, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        Site(NAME, **{selector: 3})
    with pytest.raises(SiteError, match=message):
        Site(NAME).with_(**{selector: 3})


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site(NAME), NAME),
        (Site("blocks.*.attn.img.hook_z", heads=5), "blocks.*.attn.img.hook_z[head=5]"),
        (Site(NAME, heads=[5, 7], steps=range(10, 20)), f"{NAME}[head=5|7,step=10:20]"),
        (Site(NAME, heads=[(3, 5), (4, 0)]), f"{NAME}[head=(3,5)|(4,0)]"),
        (Site(NAME, key="txt", branch="cond"), f"{NAME}[branch=cond,key=txt]"),
        (Site(NAME, key="cat"), f'{NAME}[key="cat"]'),
        (Site(NAME, key=("txt", [0, 2]), query=slice(None, 4)), f"{NAME}[query=:4,key=txt(0|2)]"),
        (Site(NAME, key=["image"]), f'{NAME}[key="image"]'),
        (Site(NAME, key=["red cat", 'a "b"']), NAME + '[key="red cat"|"a \\"b\\""]'),
    ],
)
def test_the_text_form_is_what_the_page_shows(site: Site, text: str) -> None:
    assert str(site) == text
    assert Site.parse(text) == site


def test_blanks_in_the_text_form_do_not_matter() -> None:
    assert Site.parse(f" {NAME}[ head = 5 | 7 , step = 1:3 ] ") == Site(
        NAME, heads=[5, 7], steps=slice(1, 3)
    )


def test_a_quoted_word_is_never_a_stream() -> None:
    assert Site.parse(f'{NAME}[key="image"]').key == Tokens(words=("image",))
    assert Site.parse(f"{NAME}[key=image]").key == Tokens(stream="image")


@pytest.mark.parametrize(
    "number", [np.int64(3), np.array(3), torch.tensor(3), np.array([3]), torch.tensor([3])]
)
def test_numbers_of_numpy_and_torch_are_numbers(number: Any) -> None:
    for selector in ("steps", "heads", "query", "key", "pos"):
        assert Site(NAME, **{selector: number}) == Site(NAME, **{selector: 3})


def test_repeated_indices_count_once() -> None:
    assert Site(NAME, heads=[1, 0, 1]).heads == (1, 0)


def test_equal_sites_have_equal_hashes() -> None:
    sites = {Site(NAME, steps=range(3)), Site(NAME, steps=slice(0, 3)), Site(NAME, steps=range(4))}
    assert len(sites) == 2


def test_with_replaces_selectors() -> None:
    site = Site(NAME, heads=[(1, 2)], key=("txt", "cat"), steps=range(3))
    assert site.with_(branch="cond") == Site(
        NAME, heads=[(1, 2)], key=("txt", "cat"), steps=slice(0, 3), branch="cond"
    )


@pytest.mark.parametrize(
    ("selected", "inside", "outside"),
    [
        (None, [0, 7], []),
        (3, [3], [2, 4]),
        (range(2, 9, 3), [2, 5, 8], [3, 9]),
        (slice(2, 9, 3), [2, 5, 8], [3, 11]),
        (slice(4, None), [4, 99], [3]),
    ],
)
def test_steps_are_counted_from_zero(selected: Any, inside: list, outside: list) -> None:
    site = Site(NAME, steps=selected)
    assert all(site.has_step(step) for step in inside)
    assert not any(site.has_step(step) for step in outside)


def test_a_predicate_has_a_repr_but_no_text_form() -> None:
    site = Site(str.isupper, heads=2)
    assert "[head=2]" in repr(site) and "isupper" in repr(site)
    with pytest.raises(SiteError, match=r"predicate .* has no text form; use a name"):
        str(site)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps count from 0, negative ones do not exist"),
        ({"steps": slice(-3, None)}, "steps count from 0, negative ones do not exist"),
        ({"steps": []}, r"steps=\[\] selects nothing"),
        ({"steps": range(5, 5)}, r"steps=range\(5, 5\) selects nothing"),
        ({"steps": slice(5, 3)}, "steps=slice.* selects nothing"),
        ({"steps": slice(0, 3, 0)}, "slices run forwards, with a step of at least 1"),
        ({"steps": "3"}, "steps= takes an index, a slice, a range or a list of indices; got '3'"),
        ({"steps": True}, "steps= takes indices, got True"),
        ({"steps": 1.5}, "steps= takes an index"),
        ({"heads": []}, r"heads=\[\] selects nothing"),
        ({"heads": slice(0, 0)}, r"heads=range\(0, 0\) selects nothing"),
        ({"heads": slice(1, None)}, "has no end; give one, or leave heads= out for all"),
        ({"heads": slice(0, 4, 0)}, "slices run forwards"),
        ({"heads": [True]}, "heads= takes an index"),
        ({"heads": [1.0]}, "heads= takes an index"),
        ({"heads": "all"}, "heads= takes an index"),
        ({"heads": [(1.7, 2)]}, r"\(1.7, 2\) is no \(block, head\) pair of whole numbers"),
        ({"heads": [("3", 2)]}, "pair of whole numbers"),
        ({"heads": [(True, 2)]}, "pair of whole numbers"),
        ({"steps": slice("a", None)}, "the ends of a slice are whole numbers or left out"),
        ({"key": slice(0, 2.5)}, "the ends of a slice are whole numbers or left out"),
        ({"key": ("txt", None)}, "the stream alone is 'txt'"),
        ({"key": ("txt", ("img", 3))}, "beside a stream stand words or indices of it"),
        ({"branch": ""}, "branch= takes one branch's name"),
        ({"key": "  "}, "an empty word selects nothing"),
        ({"key": ("txt", "")}, "an empty word selects nothing"),
        ({"key": slice(4, None, -1)}, "slices run forwards"),
        ({"pos": []}, r"pos=\[\] selects nothing"),
        ({"query": ["cat", 3]}, "query= takes an index"),
        ({"branch": ["cond"]}, "branch= takes one branch's name, or None for each"),
    ],
    ids=str,
)
def test_malformed_selectors_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError, match=message):
        Site(NAME, **arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "needs the name of a hook point"),
        ("  ", "needs the name of a hook point"),
        (f"{NAME}[head=3]", r"read it with `Site.parse\(...\)`"),
    ],
)
def test_names_that_are_none_are_refused(name: str, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        Site(name)


@pytest.mark.parametrize("given", [3, None, ["a"]])
def test_only_sites_names_and_predicates_stand_for_sites(given: Any) -> None:
    with pytest.raises(SiteError, match="a Site is needed, got"):
        Site.of(given)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[head=5", r"has no closing '\]'"),
        ("[]", "expected 'a value', found the end"),
        ("[head]", "expected '=', found the end"),
        ("[heads=5]", "unknown selector 'heads', the valid ones are"),
        ("[head=5,head=6]", "'head' is given twice"),
        ("[head=5 step=3]", "expected ',', found 'step'"),
        ("[key=cat]", r"'cat' is no stream .*; put words into quotes"),
        ("[key=txt(]", "expected 'a value', found the end"),
        ("[step=1:3|7]", r"a range cannot be joined with '\|'"),
        ("[head=(a,b)]", "expected a number, found 'a'"),
        ('[key="\\q"]', "cannot read"),
        ('[key="cat]', "cannot read"),
        ("[head=?]", r"cannot read '\?'"),
        ("[step=:-]", "cannot read '-'"),
        ("[step=-:3]", "cannot read '-:3'"),
        ("[branch=5]", "'5' is no branch's name; put other names into quotes"),
        ("[key=txt(img)]", "the stream 'img' stands inside another"),
        pytest.param(f"[head={'9' * 5000}]", "a number of 5000 characters", id="digits"),
        pytest.param(f"[key={'txt(' * 5000}]", "stands inside another", id="brackets"),
        ("[step=-1]", "negative ones do not exist"),
    ],
)
def test_text_that_is_no_site_is_refused_with_an_example(text: str, problem: str) -> None:
    with pytest.raises(SiteError, match=problem) as caught:
        Site.parse(NAME + text)
    if text != "[step=-1]":
        assert "an example is blocks.3.attn.hook_pattern[" in str(caught.value)
