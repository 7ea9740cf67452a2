"""HiDream's text: T5's rows, those of Llama's last layer, and those of a layer for each block."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import Site
from diffusion_lens.analyses import attention_maps
from diffusion_lens.errors import SiteError, WordError
from tests.test_families_pipelines import (
    LONG,
    PROMPT,
    differing,
    first_call,
    settings,
    shared,
)
from tests.tiny_pipelines.families import HEIGHT, WIDTH

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LENGTH = 60
CAPITALS = "A Red cat on the Glass Table"


def ids(prompt: str, length: int = LENGTH) -> list[int]:
    """Those that T5 gets, then twice those that Llama gets, by torch hooks of our own."""
    pipe: Any = shared("hidream").pipe
    found: dict[str, list[int]] = {}

    def keep(name: str) -> Any:
        return lambda _module, args, _kwargs: found.update({name: args[0][0].tolist()})

    handles = [
        getattr(pipe, f"text_encoder_{name}").register_forward_pre_hook(
            keep(name), with_kwargs=True
        )
        for name in "34"
    ]
    try:
        given = settings("hidream") | {"max_sequence_length": length}
        first_call("hidream", prompt=prompt, **given)
    finally:
        for handle in handles:
            handle.remove()
    return found["3"] + 2 * found["4"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [LENGTH, 128])
def test_words_lie_in_each_of_the_three_texts(
    side: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared("hidream")
    pipe: Any = model.pipe
    monkeypatch.setattr(pipe.tokenizer_4, "padding_side", side)
    words = (("cat", "dog", PROMPT), ("zebra", "vqxjk", LONG), ("cat", "dog", CAPITALS))
    for word, other, prompt in words:
        one, changed = ids(prompt, length), ids(prompt.replace(word, other), length)
        assert len(one) == 3 * length
        places = tuple(differing(one, changed))
        assert len(places) >= 3
        assert model.words(prompt, word, max_sequence_length=length) == places


def test_a_words_rows_are_the_ones_that_the_blocks_see() -> None:
    model = shared("hidream")
    arguments = first_call("hidream", prompt=PROMPT, **settings("hidream"))
    t5, last, own = model.words(PROMPT, "cat", max_sequence_length=LENGTH)
    layers = model.denoiser.config.llama_layers
    points = [f"blocks.{block}.txt.hook_resid_pre" for block in range(len(layers))]

    def rows(**changes: Tensor) -> list[Tensor]:
        with torch.no_grad(), model.caching(points) as cache:
            model.denoiser(**{**arguments, **changes})
        return [cache.at(step=0)[point][0] for point in points]

    def moved(before: Tensor, after: Tensor) -> list[int]:
        return differing(before, after)

    plain = rows()
    text = arguments["encoder_hidden_states_t5"].clone()
    text[0, t5] += 1.0
    assert moved(plain[0], rows(encoder_hidden_states_t5=text)[0]) == [t5]
    for block, layer in enumerate(layers):
        llama = arguments["encoder_hidden_states_llama3"].clone()
        llama[layer, 0, own - 2 * LENGTH] += 1.0
        changed = rows(encoder_hidden_states_llama3=llama)
        if layer == layers[-1]:
            assert moved(plain[0], changed[0]) == [last]
        else:
            assert moved(plain[block], changed[block]) == [own]


def test_a_branch_has_the_words_of_its_own_prompt() -> None:
    model, seen = shared("hidream"), {}

    def see(_value: Tensor, hook: Any) -> None:
        seen[hook.branch] = hook.words

    hooks = [(Site("hook_latents", branch=branch), see) for branch in ("cond", "uncond")]
    model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings("hidream", guided=True))
    places = model.words(PROMPT, "cat", max_sequence_length=LENGTH)
    assert seen["cond"]["cat"] == seen["uncond"]["dog"] == places
    assert "cat" not in seen["uncond"]


def test_words_are_looked_up_as_far_as_each_text_reaches() -> None:
    model = shared("hidream")
    pipe: Any = model.pipe
    kept = []
    for count in range(40, 64):
        prompt = "cat " * count + "zebra"
        found = ids(prompt)
        texts = [found[at * LENGTH : (at + 1) * LENGTH] for at in range(2)]
        marks = [
            pipe.tokenizer_3("zebra", add_special_tokens=False).input_ids,
            pipe.tokenizer_4(" zebra", add_special_tokens=False).input_ids,
        ]
        there = [
            any(text[at : at + len(mark)] == mark for at in range(len(text)))
            for text, mark in zip(texts, marks, strict=True)
        ]
        kept.append(there)
        if not any(there):
            with pytest.raises(WordError, match="lies behind the last"):
                model.words(prompt, "zebra", max_sequence_length=LENGTH)
            continue
        places = model.words(prompt, "zebra", max_sequence_length=LENGTH)
        reached = [any(one // LENGTH == at for one in places) for at in range(3)]
        assert reached == [there[0], there[1], there[1]]
        if all(there):
            assert len(places) == 3 * len("zebra")  # by letters, without the space before it
    assert kept[0] == [True, True] and kept[-1] == [False, False]


def test_t5s_rows_alone_are_not_asked_by_words() -> None:
    hooks = [(Site("hook_text_emb", pos="cat"), lambda _value, _hook: None)]
    with pytest.raises(SiteError, match="hook_text_emb"):
        shared("hidream").run_with_hooks(PROMPT, fwd_hooks=hooks, **settings("hidream"))


def test_maps_leave_out_the_tokens_that_fill_the_image_up() -> None:
    maps = attention_maps(shared("hidream"), PROMPT, words=["cat"], **settings("hidream"))
    assert maps.maps.shape[-2:] == (HEIGHT, WIDTH)
