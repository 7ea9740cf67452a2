"""Words in prompts that the families' pipelines treat in ways of their own."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import prompt_to_prompt
from diffusion_lens.errors import EngineError, SiteError, UnsupportedModelError, WordError
from tests.test_families_pipelines import (
    FAMILIES,
    GUIDED,
    ONE_TEXT,
    PROMPT,
    differing,
    embedded,
    first_call,
    own_embeddings,
    places_in_embeddings,
    settings,
    shared,
    tokenizer_of,
)
from tests.tiny_pipelines import PIPELINES, plain, tiny_pipeline
from tests.tiny_pipelines.families import quiet

pytestmark = pytest.mark.filterwarnings("ignore")
CAPITALS = "A Red cat on the Glass Table"


@pytest.mark.parametrize("name", ONE_TEXT)
@pytest.mark.parametrize("side", ["left", "right"])
def test_words_are_found_whichever_side_is_padded(
    name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "lumina2":
        side = "right"  # the pipeline itself sets it, and reads padding as text otherwise
    model = shared(name)
    monkeypatch.setattr(tokenizer_of(name), "padding_side", side)
    # First, since pipelines may set the side by themselves.
    places = tuple(places_in_embeddings(model, name, PROMPT, "cat"))
    ids, rows = embedded(name, PROMPT)
    other, changed = embedded(name, PROMPT.replace("cat", "dog"))
    if PIPELINES[name].causal:
        assert differing(rows, changed)[0] == places[0]
    else:
        assert tuple(differing(ids, other)) == places


@pytest.mark.parametrize("name", ONE_TEXT)
def test_words_with_capitals_are_found(name: str) -> None:
    model = shared(name)
    ids, rows = embedded(name, CAPITALS)
    other, changed = embedded(name, CAPITALS.replace("cat", "dog"))
    places = tuple(places_in_embeddings(model, name, CAPITALS, "cat"))
    if PIPELINES[name].causal:
        assert differing(rows, changed)[0] == places[0]
    else:
        assert tuple(differing(ids, other)) == places


@pytest.mark.parametrize("name", GUIDED)
def test_a_batch_has_its_prompts_in_order_in_either_branch(name: str) -> None:
    if name == "prx":
        pytest.skip("its pipeline cannot guide a batch: it gives a timestep for one sample")
    model, found = shared(name), {}
    prompts = [PROMPT, PROMPT.replace("cat", "dog")]

    def see(value: Tensor, hook: Any) -> None:
        found[hook.branch] = value.clone()

    hooks = [(Site("hook_text_emb", branch=branch), see) for branch in ("cond", "uncond")]
    given = settings(name, guided=True, num_images_per_prompt=2, num_inference_steps=1)
    if name in ("pixart", "pixart_sigma"):
        given["num_inference_steps"] = 2
    if "negative_prompt" in given:
        given["negative_prompt"] = [given["negative_prompt"]] * 2
    model.run_with_hooks(prompts, fwd_hooks=hooks, **given)
    alone = torch.cat([own_embeddings(name, prompt) for prompt in prompts])
    expected = alone.repeat_interleave(2, 0)
    torch.testing.assert_close(found["cond"], expected, rtol=1e-3, atol=1e-4)
    assert len(found["uncond"]) == 4
    assert not torch.allclose(found["uncond"][0], expected[0], atol=1e-3) or name == "z_image"


@pytest.mark.slow
def test_hunyuan_dits_words_lie_in_both_texts() -> None:
    model = shared("hunyuan_dit")
    texts = [
        first_call("hunyuan_dit", prompt=prompt, **settings("hunyuan_dit"))
        for prompt in (PROMPT, PROMPT.replace("cat", "dog"))
    ]
    pipe: Any = model.pipe
    ids = [pipe.tokenizer_2(prompt).input_ids for prompt in (PROMPT, PROMPT.replace("cat", "dog"))]
    (place,) = differing(*ids)
    assert model.words(PROMPT, "cat")[-1] == 77 + place
    assert texts[0]["encoder_hidden_states"].shape[1] == 77
    rows = [text["encoder_hidden_states_t5"][0] for text in texts]
    assert int((rows[0] - rows[1]).norm(dim=-1).argmax()) == place


@pytest.mark.slow
def test_a_word_that_the_first_text_has_no_room_for_is_not_looked_up_there() -> None:
    model, prompt = shared("hunyuan_dit"), "cat " * 76 + "table"
    ((place),) = model.words(prompt, "table")
    assert place > 77
    hooks = [(Site("hook_text_emb", pos="table"), lambda _value, _hook: None)]
    with pytest.raises(SiteError, match=r"'table' has no row at hook_text_emb, .* first 77 tokens"):
        model.run_with_hooks(prompt, fwd_hooks=hooks, **settings("hunyuan_dit"))


@pytest.mark.slow
def test_longcats_quoted_words_lie_letter_by_letter() -> None:
    model = shared("longcat")
    prompt = "a red sign with 'cat' on the glass"
    ids, rows = embedded("longcat", prompt)
    for word, other in (("glass", "table"), ("cat", "dog")):
        places = model.words(prompt, word)
        changed, changed_rows = embedded("longcat", prompt.replace(word, other))
        assert differing(rows, changed_rows)[0] == places[0]
        if word == "cat":
            assert len(places) == len(differing(ids, changed)) == 3


@pytest.mark.slow
def test_hunyuan_images_quoted_words_are_refused() -> None:
    model = shared("hunyuan_image")
    prompt = 'a red sign with "cat" on the glass'
    with pytest.raises(WordError, match="has words in quotes, which HunyuanImagePipeline encodes"):
        model.words(prompt, "glass")
    lengths = []
    hooks = [("blocks.0.txt.hook_resid_pre", lambda value, _hook: lengths.append(value.shape[1]))]
    model.run_with_hooks(prompt, fwd_hooks=hooks, **settings("hunyuan_image"))
    assert set(lengths) == {60 + 12}


def test_flux2_takes_image_marks_out_of_its_prompt() -> None:
    model = shared("flux2")
    _, rows = embedded("flux2", "a [IMG]red cat")
    _, changed = embedded("flux2", "a [IMG]red dog")
    places = model.words("a [IMG]red cat", "cat", max_sequence_length=200)
    assert differing(rows, changed)[0] == places[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [("lumina2", {"system_prompt": "Draw this:"}), ("pixart_sigma", {"clean_caption": False})],
)
def test_another_template_than_the_usual_is_refused(name: str, more: dict[str, Any]) -> None:
    model = shared(name)
    hooks = [(Site("hook_text_emb", pos="cat"), lambda _value, _hook: None)]
    with pytest.raises(WordError, match=r"was given another .* than the class's own"):
        model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings(name, **more))


@pytest.mark.slow
def test_a_batch_that_is_filled_up_in_front_is_refused() -> None:
    model = shared("cogview4")
    hooks = [(Site("hook_text_emb", pos="cat"), lambda _value, _hook: None)]
    with pytest.raises(WordError, match=r"the prompts of one batch have \[7, 9\] tokens"):
        model.run_with_hooks(
            ["a red cat on glass", PROMPT], fwd_hooks=hooks, **settings("cogview4")
        )


def test_a_template_that_hides_the_prompt_is_refused() -> None:
    pipe = tiny_pipeline("z_image")
    pipe.tokenizer.chat_template = "{{ messages[0].content | upper | replace('\\ue000', '') }}"
    with pytest.raises(WordError, match="in which the prompt cannot be told from the template"):
        HookedDiffusion(pipe).words(PROMPT, "cat")


def test_z_image_refuses_branches_of_different_length() -> None:
    model = shared("z_image")
    hooks = [("hook_text_emb", lambda _value, _hook: None)]
    given = settings("z_image", guided=True) | {"negative_prompt": "dog"}
    with pytest.raises(Exception, match="do not make one tensor; run prompts of different"):
        model.run_with_hooks(PROMPT, fwd_hooks=hooks, **given)


@pytest.mark.slow
def test_indices_count_registers_where_they_are_not_there_yet() -> None:
    model, seen = shared("auraflow"), []
    rows = own_embeddings("auraflow", PROMPT)[0]

    def read(pos: Any) -> Tensor:
        hooks = [(Site("hook_text_emb", pos=pos), lambda value, _hook: seen.append(value.clone()))]
        model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings("auraflow"))
        return seen[-1][0]

    places = model.words(PROMPT, "cat")
    assert torch.equal(read(places), rows[[at - 8 for at in places]])
    assert torch.equal(read(slice(8, 11)), rows[:3]) and torch.equal(read(-1), rows[-1:])
    with pytest.raises(SiteError, match="the first 8 tokens of stream 'txt' are added inside"):
        read(3)


@pytest.mark.parametrize("name", ["z_image", pytest.param("auraflow", marks=pytest.mark.slow)])
def test_prompt_to_prompt_refuses_templates_and_registers(name: str) -> None:
    given: dict[str, Any] = settings(name)
    with pytest.raises(UnsupportedModelError, match="puts a template, registers or padding"):
        prompt_to_prompt(shared(name), PROMPT, PROMPT.replace("cat", "dog"), **given)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_of_hook_points_is_made(name: str) -> None:
    assert "hook_text_emb" in str(shared(name).hook_table("hook_*"))


def test_words_of_a_prompt_that_is_written_anew_are_refused() -> None:
    model = shared("flux2")
    run = Run(PROMPT, caption_upsample_temperature=0.2)
    with pytest.raises(WordError, match="writes the prompt anew before it is encoded"):
        model.prompt_tokens(PROMPT, run=run)
    short = Run(PROMPT, max_sequence_length=200)
    expected = model.prompt_tokens(PROMPT, max_sequence_length=200)
    assert model.prompt_tokens(PROMPT, run=short) == expected


@pytest.mark.slow
def test_a_run_of_another_template_is_refused_before_it_runs() -> None:
    for name, more in (("lumina2", {"system_prompt": "x"}), ("longcat", {})):
        model = shared(name)
        with pytest.raises(WordError, match=r"another system_prompt|writes the prompt anew"):
            model.prompt_tokens(PROMPT, run=Run(PROMPT, **more))
    assert model.prompt_tokens(PROMPT, run=Run(PROMPT, enable_prompt_rewrite=False))


@pytest.mark.exhaustive
def test_ernies_prompts_are_written_anew_only_by_a_model_that_is_there() -> None:
    model = shared("ernie_image")
    pipe: Any = model.pipe
    assert model.prompt_tokens(PROMPT, run=Run(PROMPT)) == model.prompt_tokens(PROMPT)
    kept, pipe.pe = pipe.pe, pipe.text_encoder
    try:
        with pytest.raises(WordError, match="writes the prompt anew"):
            model.prompt_tokens(PROMPT, run=Run(PROMPT))
        run = Run(PROMPT, use_pe=False)
        assert model.prompt_tokens(PROMPT, run=run) == model.prompt_tokens(PROMPT)
    finally:
        pipe.pe = kept


@pytest.mark.exhaustive
def test_sana_sprint_is_read_as_sana_is() -> None:
    model = HookedDiffusion(quiet(plain.sana_sprint))
    pipe: Any = model.pipe
    given: dict[str, Any] = {
        key: value for key, value in settings("sana").items() if key != "guidance_scale"
    }
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **given).images
    seen, texts = set(), []

    def see(value: Tensor, hook: Any) -> None:
        seen.add((hook.name, hook.timestep))
        if hook.name == "hook_text_emb":
            texts.append(value.clone())

    known = [name for name in model.points if name != "hook_pred_x0"]
    out = model.run_with_hooks(PROMPT, seed=0, fwd_hooks=[(name, see) for name in known], **given)
    assert torch.equal(out.images, expected) and {name for name, _ in seen} == set(known)
    assert sorted({time for _, time in seen}) == sorted(pipe.scheduler.timesteps[:-1].tolist())
    model.run_with_hooks(
        PROMPT.replace("cat", "dog"), seed=0, fwd_hooks=[("hook_text_emb", see)], **given
    )
    rows = (texts[0] != texts[-1]).any(-1)[0].nonzero().flatten().tolist()
    assert model.words(PROMPT, "cat", max_sequence_length=60)[0] == rows[0]
    assert out.latents is not None
    assert torch.equal(model.decode_latents(out.latents, output_type="pt"), expected)
    with pytest.raises(EngineError, match="prediction_type='trigflow'"):
        model.run_with_cache(PROMPT, names_filter="hook_pred_x0", **given)
