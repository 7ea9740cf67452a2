"""What a computation depends on: nothing that changes its numbers goes unnoticed."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.errors import ResultError
from diffusion_lens.long_runs.fingerprint import fingerprint, refuse_other
from tests.pipelines import fresh_pipe, shared_pipe

RUN = Run("a red cat", seed=1, num_inference_steps=2, negative_prompt="blurry")


def scheduler(**config: Any) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **config)

    return change


def lora(weight: float) -> Callable[[Any], None]:
    from peft import LoraConfig

    def change(pipe: Any) -> None:
        torch.manual_seed(0)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        pipe.unet.set_adapters(["default"], [weight])

    return change


def of(change: Callable[[Any], Any] | None = None, run: Run = RUN, **what: Any) -> dict[str, str]:
    pipe = shared_pipe("sd") if change is None else fresh_pipe("sd")
    if change is not None:
        change(pipe)
    return fingerprint(HookedDiffusion(pipe), run, **what)


def names_apart(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def test_equal_runs_of_equal_models_have_equal_fingerprints() -> None:
    assert of(vote="argmax") == of(vote="argmax")
    assert all(isinstance(text, str) for text in of(vote=1, words={"a": [1]}).values())


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a weight": (lambda pipe: pipe.unet.conv_in.bias.data.add_(1), "unet.weights"),
    "a weight of the text": (
        lambda pipe: pipe.text_encoder.get_input_embeddings().weight.data.mul_(2),
        "text_encoder.weights",
    ),
    "precision": (lambda pipe: pipe.unet.to(torch.bfloat16), "unet.dtype"),
    "the tokenizer": (lambda pipe: pipe.tokenizer.add_tokens(["<cat>"]), "tokenizer"),
    "the scheduler's spacing": (
        scheduler(timestep_spacing="trailing"),
        "scheduler.timestep_spacing",
    ),
    "the scheduler's prediction": (
        scheduler(prediction_type="v_prediction"),
        "scheduler.prediction_type",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_model_is_named(change: Callable[[Any], Any], name: str) -> None:
    assert name in names_apart(of(), of(change))


def test_a_scheduler_of_another_class_is_named() -> None:
    apart = names_apart(of(scheduler()), of())
    assert "scheduler" in apart


@pytest.mark.slow
def test_adapters_and_their_strengths_are_noticed() -> None:
    assert "unet.weights" in names_apart(of(), of(lora(1.0)))
    assert names_apart(of(lora(1.0)), of(lora(0.5))) == {"unet.weights"}


@pytest.mark.slow
def test_prompts_and_settings_are_compared_in_full() -> None:
    long = "blurry, " * 200
    assert names_apart(of(), of(run=RUN.with_(prompt="a red dog"))) == {"run.prompt"}
    one, other = (of(run=RUN.with_(negative_prompt=long + end)) for end in ("cat", "dog"))
    assert names_apart(one, other) == {"run.negative_prompt"}
    one, other = (of(run=Run(prompt_embeds=torch.full((1, 4, 8), n))) for n in (0.0, 1.0))
    assert names_apart(one, other) == {"run.prompt_embeds"}
    assert names_apart(of(), of(run=RUN.with_(eta=0.5))) == {"run.eta"}
    assert names_apart(of(), of(run=RUN.with_(seed=2))) == {"run.seed"}


def test_whatever_else_matters_is_compared_part_by_part_and_in_its_order() -> None:
    words = {"Colour": ["red"], "Shape": ["round"]}
    other = {"Colour": ["red"], "Shape": ["square"]}
    turned = {"Shape": ["round"], "Colour": ["red"]}
    assert names_apart(of(words=words), of(words=other)) == {"words.Shape"}
    assert names_apart(of(words=words), of(words=turned)) == {"words"}
    assert names_apart(of(clean=RUN), of(clean=RUN.with_(seed=5))) == {"clean.seed"}
    assert names_apart(of(step=1), of(step=None)) == {"step"}


def test_where_the_model_was_read_from_does_not_matter() -> None:
    def moved(pipe: Any) -> None:
        for part in (pipe, pipe.unet, pipe.vae):
            part.register_to_config(_name_or_path="/elsewhere")
        pipe.text_encoder.config._name_or_path = "/elsewhere"

    assert of() == of(moved)


def test_running_the_model_does_not_change_it() -> None:
    model = HookedDiffusion(fresh_pipe("sd"))
    before = fingerprint(model, RUN)
    model(RUN, output_type="latent", height=32, width=32)
    names = "blocks.0.attn.hook_pattern"
    model.run_with_cache(RUN, names_filter=names, output_type="latent", height=32, width=32)
    assert fingerprint(model, RUN) == before


def test_open_hooks_are_noticed() -> None:
    model = HookedDiffusion(fresh_pipe("sd"))
    before = fingerprint(model, RUN)
    with model.hooks([("blocks.0.img.hook_resid_post", lambda value, hook: value * 2)]):
        twice = fingerprint(model, RUN)
    with model.hooks([("blocks.0.img.hook_resid_post", lambda value, hook: value * 3)]):
        thrice = fingerprint(model, RUN)
    assert names_apart(before, twice) == names_apart(twice, thrice) == {"open hooks"}


def test_a_bare_denoiser_has_one() -> None:
    model = HookedDiffusion(fresh_pipe("sd").unet)
    found = fingerprint(model, None, steps=3)
    assert {"denoiser", "denoiser.weights", "denoiser.dtype", "steps"} <= found.keys()


# -- refusing -----------------------------------------------------------------------------------


def test_the_same_run_is_taken() -> None:
    refuse_other({"a": "1"}, {"a": "1"}, folder="f", error=ResultError)


def test_a_refusal_names_what_differs() -> None:
    wanted = {"scheduler.spacing": '"trailing"', "prompt": '"' + "x" * 90 + 'cat"', "new": "1"}
    found = {"scheduler.spacing": '"leading"', "prompt": '"' + "x" * 90 + 'dog"', "old": "1"}
    with pytest.raises(ResultError) as refused:
        refuse_other(found, wanted, folder="my folder", error=ResultError)
    message = str(refused.value)
    assert message.startswith("my folder holds what another run left. Different: ")
    assert 'scheduler.spacing ("leading" there, "trailing" now)' in message
    assert re.search(r'prompt \(…x+dog" there, …x+cat" now\)', message)
    assert "new (not said there)" in message
    assert "old (not said now)" in message
    assert message.endswith("Give another folder, or remove this one to begin anew")


@pytest.mark.parametrize("found", [None, [], "text", {}])
def test_what_is_no_fingerprint_is_another(found: Any) -> None:
    with pytest.raises(ResultError, match="another run"):
        refuse_other(found, {"a": "1"}, folder="f", error=ResultError)
