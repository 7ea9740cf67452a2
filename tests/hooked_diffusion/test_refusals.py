from __future__ import annotations

import pytest

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.engine.attention import _own_lengths
from diffusion_lens.errors import EngineError, RunError, SiteError
from tests.pipelines import shared_pipe, short


def test_a_cache_of_nothing_is_refused() -> None:
    with pytest.raises(RunError, match="names_filter is empty: name what to cache"):
        HookedDiffusion(shared_pipe("sd")).run_with_cache(**short("sd"), names_filter=[])


def test_streams_are_not_taken_for_words() -> None:
    with pytest.raises(SiteError, match="mixes the stream 'img' with others; leave key= out"):
        Site("blocks.0.attn.hook_pattern", key=["img", "txt"])
    assert Site("blocks.0.attn.hook_pattern", key=("txt", "img")).words == ("img",)


def test_tokens_of_an_unknown_stream_are_not_cut_at_random() -> None:
    assert _own_lengths(("txt", "img"), 23, {"txt": 7, "img": 16}) == {}
    with pytest.raises(EngineError, match="the joint sequence has 30 tokens, its streams"):
        _own_lengths(("txt", "img"), 30, {"txt": 7, "img": 16})
