"""A class that is not known, described on the spot, beside the reviewed description of it."""

from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.architectures import registry
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.errors import ArgumentError, EngineError, UnsupportedModelError, WordError
from diffusion_lens.testing import tiny_denoiser
from tests.tiny_pipelines import PIPELINES, tiny_pipeline

GUIDED = ("qwen_image", "krea2", "chroma", "pixart", "cogview4")
FIELDS = ("latents", "text", "timestep", "guidance", "branches", "timestep_scale")

pytestmark = pytest.mark.filterwarnings("ignore")


def forgotten(monkeypatch: pytest.MonkeyPatch, denoiser: Any) -> DenoiserSpec:
    """Make a class unknown; its reviewed description."""
    kind = type(denoiser).__name__
    spec = registry._REGISTERED[kind]
    monkeypatch.delitem(registry._REGISTERED, kind)
    return spec


@pytest.mark.parametrize(
    "name", [GUIDED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in GUIDED[1:])]
)
def test_a_pipeline_is_what_its_review_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, known = tiny_pipeline(name), PIPELINES[name]
    reviewed = HookedDiffusion(pipe)
    forgotten(monkeypatch, pipe.transformer)
    model = HookedDiffusion(pipe, describe=known.settings)

    assert {field: getattr(model.spec, field) for field in FIELDS} == {
        field: getattr(reviewed.spec, field) for field in FIELDS
    }
    assert model.spec.withheld == {}
    height, width = known.pixels
    run = {"num_inference_steps": 2, "output_type": "pt", "height": height, "width": width}
    run |= {**known.settings, **(known.guided or {})}
    names = [name for name in model.points if name in reviewed.points]
    # Refiners are left apart where nobody has reviewed them.
    expected_names = [name for name in reviewed.points if not name.startswith("refiner.")]
    assert len(names) >= 0.95 * len(expected_names)
    found, expected = (
        one.run_with_cache("a red cat", names_filter=names, branch="all", seed=0, **run)[1]
        for one in (model, reviewed)
    )
    for name in names:
        for branch in expected.branches:
            ours, theirs = found.branch(branch)[name], expected.branch(branch)[name]
            assert torch.equal(ours, theirs), (name, branch)


def test_a_bare_denoiser_is_described_from_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, inputs = tiny_denoiser("flux")
    forgotten(monkeypatch, denoiser)
    with pytest.raises(ArgumentError, match=r"called by hand, so say how: describe=\{"):
        HookedDiffusion(denoiser, describe=True)
    model = HookedDiffusion(denoiser, describe=inputs)
    assert "(provisional), 4 blocks" in repr(model)
    plain = denoiser(**inputs).sample
    with model.caching("**.hook_pattern") as cache:
        assert torch.equal(denoiser(**inputs).sample, plain)
    assert cache["blocks.3.attn.hook_pattern"].sum(-1).allclose(torch.tensor(1.0))


def test_words_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline("chroma")
    forgotten(monkeypatch, pipe.transformer)
    model = HookedDiffusion(pipe, describe=PIPELINES["chroma"].settings)
    with pytest.raises(WordError, match="the description of this class is provisional"):
        model.prompt_tokens("a red cat").find("cat")


def test_branches_that_were_not_seen_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, known = tiny_pipeline("qwen_image"), PIPELINES["qwen_image"]
    forgotten(monkeypatch, pipe.transformer)
    model = HookedDiffusion(pipe, describe={**known.settings, "true_cfg_scale": 1.0})
    assert model.spec.branches == ("cond",)
    height, width = known.pixels
    run = {"num_inference_steps": 2, "height": height, "width": width, **known.settings}
    with pytest.raises(EngineError, match="names an evaluation of its denoiser 'uncond'"):
        model.run_with_cache("a cat", negative_prompt="a dog", true_cfg_scale=4.0, **run)


def test_without_it_the_relative_and_the_option_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, _ = tiny_denoiser("bria")
    forgotten(monkeypatch, denoiser)
    said = r"built most like .* `HookedDiffusion\(\.\.\., describe=True\)` describes it"
    with pytest.raises(UnsupportedModelError, match=said):
        HookedDiffusion(denoiser)


def test_tokens_that_nothing_moves_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, inputs = tiny_denoiser("auraflow")
    forgotten(monkeypatch, denoiser)
    said = "no block of AuraFlow.* could be read without doubt: no input moves 8 tokens"
    with pytest.raises(UnsupportedModelError, match=said):
        HookedDiffusion(denoiser, describe=inputs)


def test_a_model_that_defeats_the_reading_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, inputs = tiny_denoiser("flux")
    forgotten(monkeypatch, denoiser)
    block: Any = denoiser.get_submodule("transformer_blocks.0")
    plain = type(block).forward

    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.overrides._get_current_function_mode_stack():
            raise NotImplementedError("not under a mode")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(block), "forward", once)
    with pytest.raises(UnsupportedModelError, match=r"not be read \(NotImplementedError: not"):
        HookedDiffusion(denoiser, describe=inputs)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in denoiser.modules())
