"""Where the words of a prompt lie in the text that a modular pipeline's denoiser gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.errors import ConceptError, RunError, WordError
from tests.modular.pipelines import (
    FAMILIES,
    generator,
    guided,
    made,
    put_together,
    settings,
    shared,
)
from tests.pipelines import latents_of

LAST = {"sdxl": "text_encoder", "flux": "text_encoder_2", "sd3": "text_encoder_3"}
"""The encoder that fills the end of the text stream, where there are several."""


def text_of(name: str, arguments: dict[str, Any]) -> Tensor:
    """The text that the denoiser gets: axes pos, d_text."""
    found = arguments["cap_feats" if name == "z_image" else "encoder_hidden_states"]
    return found[0]


def encoded(name: str, prompt: str) -> tuple[Tensor, Tensor]:
    """The tokens that the encoder of a run gets first, and the text of the first evaluation."""
    pipe = shared(name)[1]
    if FAMILIES[name].scale:
        guided(pipe)
    ids: list[Tensor] = []
    texts: list[Tensor] = []

    def keep_ids(_module: Any, args: tuple, kwargs: dict) -> None:
        ids.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0])[0].clone())

    def keep_text(_module: Any, _args: tuple, kwargs: dict) -> None:
        texts.append(text_of(name, kwargs))

    encoder = getattr(pipe, LAST.get(name, "text_encoder"))
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    handles = [
        encoder.register_forward_pre_hook(keep_ids, with_kwargs=True),
        denoiser.register_forward_pre_hook(keep_text, with_kwargs=True),
    ]
    try:
        pipe(prompt=prompt, generator=generator(), **settings(name, steps=1))
    finally:
        for handle in handles:
            handle.remove()
    return ids[0], texts[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_word_lies_where_its_tokens_go_into_the_encoder(name: str) -> None:
    ids, text = encoded(name, "the red cat sits")
    others, _ = encoded(name, "the red dog sits")
    assert ids.shape == others.shape
    differ = (ids != others).nonzero().flatten()
    dropped = {"qwen_image": len(ids) - len(text)}.get(name, 0)
    before = {"sd3": 77}.get(name, 0)
    expected = tuple(int(place) - dropped + before for place in differ)
    assert expected
    model = HookedDiffusion(shared(name)[1])
    length = FAMILIES[name].settings.get("max_sequence_length")
    found = model.words("the red cat sits", "cat", max_sequence_length=length)
    assert tuple(place for place in found if place >= before) == expected
    seen: dict[str, tuple[int, ...]] = {}
    site = Site("blocks.0.img.hook_resid_pre", branch="cond")
    hooks = [(site, lambda _, hook: seen.update(hook.words))]
    model.run_with_hooks("the red cat sits", fwd_hooks=hooks, **settings(name, steps=1))
    assert seen["cat"] == found


@pytest.mark.parametrize("name", ["sdxl", "qwen_image", "wan"])
def test_words_of_the_negative_prompt_belong_to_its_branch(name: str) -> None:
    pipe = shared(name)[1]
    guided(pipe)
    model, seen = HookedDiffusion(pipe), {}
    hooks = [
        ("blocks.0.img.hook_resid_pre", lambda _, hook: seen.update({hook.branch: hook.words}))
    ]
    model.run_with_hooks("a cat", fwd_hooks=hooks, **settings(name, steps=1))
    assert list(seen["cond"]) == ["a", "cat"]
    assert list(seen["uncond"]) == ["blurry", "picture"]


def test_a_second_prompt_that_flux_leaves_unread_is_not_told() -> None:
    model, seen = HookedDiffusion(shared("flux")[1]), {}
    hooks = [("blocks.0.img.hook_resid_pre", lambda _, hook: seen.update(hook.words))]
    model.run_with_hooks("a cat", fwd_hooks=hooks, prompt_2="two dogs", **settings("flux", steps=1))
    assert list(seen) == ["a", "cat"]


def test_the_usual_length_of_the_blocks_counts() -> None:
    """Qwen-Image's blocks keep 1024 tokens of a prompt, the classic pipeline 512."""
    classic, pipe = shared("qwen_image")
    prompt = " ".join(["red"] * 700)
    ours = HookedDiffusion(pipe).prompt_tokens(prompt)
    theirs = HookedDiffusion(classic).prompt_tokens(prompt, max_sequence_length=1024)
    assert ours == theirs
    assert len(ours.positions) > 512


def test_words_of_an_encoder_that_is_not_described_are_refused() -> None:
    from diffusers.modular_pipelines.stable_diffusion_xl.encoders import (
        StableDiffusionXLTextEncoderStep,
    )

    class Mine(StableDiffusionXLTextEncoderStep):
        pass

    pipe = made("sdxl")[1]
    pipe._blocks.sub_blocks["text_encoder"] = Mine()
    model = HookedDiffusion(pipe)
    with pytest.raises(WordError, match="what Mine makes of a prompt is not described"):
        model.words("a cat", "cat")
    hooks = [(Site("mid.hook_h", branch="cond"), lambda _, hook: hook.words)]
    with pytest.raises(WordError, match="what Mine makes of a prompt is not described"):
        model.run_with_hooks("a cat", fwd_hooks=hooks, **settings("sdxl", steps=1))
    out, _ = model.run_with_cache("a cat", seed=0, **settings("sdxl", steps=1))
    expected = shared("sdxl")[1]
    guided(expected, 7.5)
    same = HookedDiffusion(expected)("a cat", seed=0, **settings("sdxl", steps=1))
    assert torch.equal(latents_of(out), latents_of(same))


def test_embeddings_in_place_of_prompts_tell_no_words() -> None:
    """Blocks without an encoder take what another pipeline's encoder gave."""
    import diffusers

    whole, pipe = shared("sdxl")
    blocks = diffusers.StableDiffusionXLAutoBlocks()
    state = pipe(prompt="a cat", generator=generator(), **settings("sdxl", steps=1))
    encoder = blocks.sub_blocks.pop("text_encoder")
    rest = put_together(whole, blocks)
    assert encoder is not None
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
    given = {one: state.get(one) for one in (*names, "negative_pooled_prompt_embeds")}
    guided(rest)
    model = HookedDiffusion(rest)
    seen = []
    kept = {one: value for one, value in settings("sdxl").items() if one != "negative_prompt"}
    with model.hooks([("mid.hook_h", lambda a, hook: seen.append((hook.branch, len(a))))]):
        model(**given, **kept)
    assert seen == [("cond", 1), ("uncond", 1)] * 2
    with pytest.raises(RunError, match="takes no argument 'prompt'"):
        model("a cat", **kept)
    with pytest.raises(
        WordError, match="no block of this StableDiffusionXLModularPipeline encodes"
    ):
        model.words("a cat", "cat")


def test_concepts_stream_beside_a_modular_run() -> None:
    classic, pipe = shared("flux")
    given = settings("flux", steps=1)
    found = []
    for model in (HookedDiffusion(classic), HookedDiffusion(pipe)):
        with model.concept_streams(["cat", "sky"], max_sequence_length=32):
            _, cache = model.run_with_cache(
                "a cat", seed=0, names_filter="blocks.0.attn.concept.hook_z", **given
            )
        found.append(cache["blocks.0.attn.concept.hook_z"])
    assert torch.equal(*found)


def test_concepts_of_an_undescribed_encoder_are_refused() -> None:
    pipe = made("flux")[1]
    encoder = pipe._blocks.sub_blocks["text_encoder"]
    encoder.__class__ = type("Mine", (type(encoder),), {})
    with (
        pytest.raises((ConceptError, WordError), match="what Mine makes of a prompt"),
        HookedDiffusion(pipe).concept_streams(["cat"]),
    ):
        pass
