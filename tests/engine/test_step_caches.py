from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import hooks
from packaging.version import Version
from torch import nn

from diffusion_lens import HookedDiffusion
from diffusion_lens.engine.step_caches import step_cache_on
from diffusion_lens.errors import EngineError
from diffusion_lens.testing.tiny import tiny_denoiser


def _faster(module: nn.Module) -> None:
    config = hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        tensor_format="BCHW",
        current_timestep_callback=lambda: 500,
        is_guidance_distilled=True,
    )
    hooks.apply_faster_cache(module, config)


def _pyramid(module: nn.Module) -> None:
    config = hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    hooks.apply_pyramid_attention_broadcast(module, config)


def _mag(module: nn.Module) -> None:
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    apply_mag_cache(module, MagCacheConfig(num_inference_steps=4, calibrate=True))


def _taylor(module: nn.Module) -> None:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    apply_taylorseer_cache(module, TaylorSeerCacheConfig(cache_interval=2))


def _first(module: nn.Module) -> None:
    hooks.apply_first_block_cache(module, hooks.FirstBlockCacheConfig())


def _skip(module: nn.Module) -> None:
    config = hooks.LayerSkipConfig(indices=[1], fqn="transformer_blocks")
    hooks.apply_layer_skip(module, config)


CACHES: dict[str, Callable[[nn.Module], None]] = {
    "first_block_cache": _first,
    "faster_cache": _faster,
    "pyramid_attention_broadcast": _pyramid,
    "mag_cache": _mag,
    "taylorseer_cache": _taylor,
    "layer_skip": _skip,
}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_put_on_by_a_function_is_seen(name: str) -> None:
    if name != "layer_skip" and not hasattr(hooks, f"apply_{name}"):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    denoiser, _ = tiny_denoiser("flux")
    assert step_cache_on(denoiser) is None
    CACHES[name](denoiser)
    assert step_cache_on(denoiser) == name


def test_kept_keys_and_values_of_the_text_are_refused_until_they_are_disabled() -> None:
    if not hasattr(hooks, "TextKVCacheConfig"):
        pytest.skip(f"diffusers {diffusers.__version__} has no text_kv_cache")
    denoiser: Any
    denoiser, inputs = tiny_denoiser("nucleus")
    model, seen = HookedDiffusion(denoiser), []
    hook = ("**.hook_pattern", lambda _value, hook: seen.append(hook.name))
    with torch.no_grad():
        plain = denoiser(**inputs)[0]
        denoiser.enable_cache(hooks.TextKVCacheConfig())
        with (
            pytest.raises(EngineError, match=r"\(text_kv_cache\): it leaves out .*disable_cache"),
            model.hooks([hook]),
        ):
            denoiser(**inputs)
        assert not seen
        denoiser.disable_cache()
        with model.hooks([hook]):
            assert torch.equal(denoiser(**inputs)[0], plain)
    assert seen


def test_an_enabled_cache_is_seen_until_it_is_disabled() -> None:
    denoiser, _ = tiny_denoiser("flux")
    denoiser.enable_cache(hooks.FirstBlockCacheConfig())  # type: ignore[operator]
    assert step_cache_on(denoiser) == "first_block_cache"
    denoiser.disable_cache()  # type: ignore[operator]
    assert step_cache_on(denoiser) is None


def test_casting_and_offloading_are_no_caches() -> None:
    denoiser, _ = tiny_denoiser("flux")
    denoiser.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)  # type: ignore[operator]
    assert step_cache_on(denoiser) is None
    if Version(diffusers.__version__) < Version("0.37"):
        pytest.skip("diffusers 0.36 offloads groups to accelerators alone")
    denoiser, _ = tiny_denoiser("flux")
    onload = torch.device("cpu")
    hooks.apply_group_offloading(denoiser, onload, offload_type="leaf_level")
    assert step_cache_on(denoiser) is None


def test_another_packages_hook_that_stands_in_for_a_forward_is_taken_for_a_cache() -> None:
    class SkipsEverySecondStep(hooks.ModelHook):
        def new_forward(self, _module: nn.Module, *args: object, **kwargs: object) -> object:
            forward: Any = self.fn_ref.original_forward
            return forward(*args, **kwargs)

    denoiser, _ = tiny_denoiser("sd3")
    block = denoiser.get_submodule("transformer_blocks.1.attn")
    registry = hooks.HookRegistry.check_if_exists_or_initialize(block)
    registry.register_hook(SkipsEverySecondStep(), "mine")
    assert step_cache_on(denoiser) == "SkipsEverySecondStep"
    registry.remove_hook("mine")
    assert step_cache_on(denoiser) is None
