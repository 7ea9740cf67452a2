"""Blocks that refine one stream before the others run, beside torch hooks of our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.describing import compare_with_evaluation
from diffusion_lens.errors import EngineError, SiteError
from diffusion_lens.testing import check_architecture, tiny_denoiser

MODULES = {
    "z_image": {"noise_refiner.0": "img", "context_refiner.0": "txt"},
    "lumina2": {"context_refiner.0": "txt", "noise_refiner.0": "img"},
    "krea2": {"text_fusion.refiner_blocks.0": "txt"},
    "hunyuan_video": {"context_embedder.token_refiner.refiner_blocks.0": "txt"},
    "kandinsky5": {"text_transformer_blocks.0": "txt"},
}
PROJECTIONS = {
    "z_image": "attention.to_out.0",
    "lumina2": "attn.to_out.0",
    "krea2": "attn.to_out.0",
    "hunyuan_video": "attn.to_out.0",
    "kandinsky5": "self_attention.out_layer",
}


def predicted(denoiser: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found = denoiser(**inputs, return_dict=False)[0]
    return torch.stack(found) if isinstance(found, list) else found


@pytest.mark.parametrize("family", MODULES)
def test_a_refiner_is_the_module_and_holds_the_stream_that_the_table_says(family: str) -> None:
    denoiser, inputs = tiny_denoiser(family)
    model = HookedDiffusion(denoiser)
    ran: list[str] = []
    entered: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def kept(_module: nn.Module, args: tuple, output: Tensor) -> None:
            ran.append(path)
            entered[path], left[path] = args[0].clone(), output.clone()

        return kept

    handles = [
        denoiser.get_submodule(path).register_forward_hook(keep(path)) for path in MODULES[family]
    ]
    plain = predicted(denoiser, inputs)
    assert ran == list(MODULES[family])  # in the order of execution
    points = "refiner.*.*.hook_resid_*"
    with model.caching([points]) as cache:
        assert torch.equal(predicted(denoiser, inputs), plain)
    for place, (path, stream) in enumerate(MODULES[family].items()):
        base = f"refiner.{place}.{stream}"
        assert model.points[f"{base}.hook_resid_pre"].module == path
        assert torch.equal(cache.at(step=0)[f"{base}.hook_resid_pre"], entered[path])
        assert torch.equal(cache.at(step=0)[f"{base}.hook_resid_post"], left[path])
    for handle in handles:
        handle.remove()
    others = {"img", "txt"} - set(MODULES[family].values())
    assert not [name for name in model.hook_names("refiner.**") if name.split(".")[2] in others]


@pytest.mark.parametrize("family", MODULES)
def test_an_edit_of_a_head_is_that_of_the_columns_of_its_projection(family: str) -> None:
    denoiser, inputs = tiny_denoiser(family)
    model = HookedDiffusion(denoiser)
    plain = predicted(denoiser, inputs)
    for place, (path, stream) in enumerate(MODULES[family].items()):
        name = f"refiner.{place}.attn.{stream}.hook_result"
        count = model.points[name].heads
        projection: Any = denoiser.get_submodule(f"{path}.{PROJECTIONS[family]}")
        width = projection.in_features // (count or 1)
        with model.hooks([(Site(name, heads=1), lambda value, _hook: value * 0)]):
            by_hook = predicted(denoiser, inputs)
        before = projection.weight.detach().clone()
        with torch.no_grad():
            projection.weight[:, width : 2 * width] = 0
        by_weights = predicted(denoiser, inputs)
        with torch.no_grad():
            projection.weight.copy_(before)
        assert not torch.equal(by_weights, plain)
        assert (by_hook - by_weights).abs().max() < 1e-3 * (by_weights - plain).abs().max()


def test_blocks_are_not_refiners() -> None:
    denoiser, inputs = tiny_denoiser("z_image")
    model = HookedDiffusion(denoiser)
    assert not [name for name in model.hook_names("blocks.**") if "refiner" in name]
    assert all(model.points[name].block is None for name in model.hook_names("refiner.**"))
    assert {site.name for site in model.text_pattern_sites()} == {
        f"blocks.{block}.attn.hook_pattern" for block in range(model.n_blocks)
    }
    with model.caching("**.img.hook_resid_post") as cache:
        predicted(denoiser, inputs)
    at = cache.at(step=0)
    assert at.stack("img.hook_resid_post").shape[0] == model.n_blocks
    assert at.stack("refiner.*.img.hook_resid_post").shape[0] == 1
    with (
        pytest.raises(SiteError),
        model.hooks([(Site("refiner.*.attn.img.hook_z", heads=[(0, 1)]), lambda _v, _h: None)]),
    ):
        predicted(denoiser, inputs)


def test_texts_of_unlike_length_are_refused_where_they_are_refined() -> None:
    denoiser, inputs = tiny_denoiser("z_image")
    first, second = inputs["cap_feats"]
    given = {**inputs, "cap_feats": [first, torch.cat([second, second])]}
    model = HookedDiffusion(denoiser)
    point = ("refiner.1.txt.hook_resid_post", lambda _value, _hook: None)
    unlike = r"the samples have \[32, 64\] text tokens"
    with pytest.raises(EngineError, match=unlike), model.hooks([point]):
        predicted(denoiser, given)
    image = ("refiner.0.img.hook_resid_post", lambda _value, _hook: None)
    with model.hooks([image]):
        predicted(denoiser, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MODULES)
@pytest.mark.slow
def test_refiners_keep_the_contract(family: str, dtype: torch.dtype) -> None:
    denoiser, inputs = tiny_denoiser(family, dtype=dtype)
    report = check_architecture(denoiser, inputs, points=lambda name: name.startswith("refiner."))
    assert report.ok and not report.skipped


@pytest.mark.parametrize("family", MODULES)
def test_refiners_are_described_as_they_run(family: str) -> None:
    denoiser, inputs = tiny_denoiser(family)
    spec = HookedDiffusion(denoiser).spec
    assert compare_with_evaluation(spec, denoiser, inputs)[0] == []
