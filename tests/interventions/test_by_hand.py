"""Interventions against the same edits made with torch hooks and an attention written out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lens import ActivationCache, HookedDiffusion, Site
from diffusion_lens.interventions import (
    ablate_heads,
    add_vector,
    bypass_block,
    freeze_pattern,
    replace_with,
    scale_heads,
    scale_token_columns,
)
from tests.pipelines import latents_of, shared_pipe, short

OTHER = "two dogs in a snowy park"
ATTENTION = {
    "sd": "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "flux": "transformer_blocks.1.attn",
}
BLOCK = {name: path.rpartition(".")[0] for name, path in ATTENTION.items()}
PREFIX = {"sd": "blocks.1.cross_attn", "flux": "blocks.1.attn"}
CAT = [3]
HEADS = 4
families = pytest.mark.parametrize("name", ["sd", "flux"])
Edit = Callable[[Tensor, int], Tensor]
"""A change of the cond rows at one step."""


@functools.cache
def hooked(name: str) -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(name))


def denoiser(name: str) -> torch.nn.Module:
    return shared_pipe(name).unet if name == "sd" else shared_pipe(name).transformer


def run(name: str, *hooks: tuple, **more: Any) -> Tensor:
    return latents_of(hooked(name).run_with_hooks(**short(name, **more), fwd_hooks=hooks))


def by_hand(name: str, **more: Any) -> Tensor:
    return shared_pipe(name)(**short(name, **more)).images


def cond(name: str, value: Tensor) -> Tensor:
    """The conditional half of a batch; the golden flux has no other."""
    return value[len(value) // 2 :] if name == "sd" else value


def on_cond(name: str, value: Tensor, edit: Edit, step: int) -> Tensor:
    out = value.clone()
    cond(name, out)[:] = edit(cond(name, value), step)
    return out


@contextlib.contextmanager
def attention(name: str, edit: Edit) -> Iterator[None]:
    """Compute the module's attention in full and edit its pattern."""
    module, original = denoiser(name).get_submodule(ATTENTION[name]), F.scaled_dot_product_attention
    inside, steps = [False], [0]

    def product(query: Tensor, key: Tensor, value: Tensor, *args: Any, **more: Any) -> Tensor:
        if not inside[0]:
            return original(query, key, value, *args, **more)
        pattern = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        pattern = on_cond(name, pattern, edit, steps[0])
        steps[0] += 1
        return pattern @ value

    handles = [
        module.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True)),
        module.register_forward_hook(lambda *_: inside.__setitem__(0, False)),
    ]
    F.scaled_dot_product_attention = product
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def values(name: str, edit: Edit) -> Iterator[None]:
    """Edit what the image's output projection gets, with a head axis."""
    module, steps = denoiser(name).get_submodule(f"{ATTENTION[name]}.to_out.0"), [0]

    def before(_module: Any, args: tuple) -> tuple:
        z = args[0].unflatten(-1, (HEADS, -1))
        steps[0] += 1
        return (on_cond(name, z, edit, steps[0] - 1).flatten(-2),)

    with module.register_forward_pre_hook(before):
        yield


@contextlib.contextmanager
def leaving(name: str, edit: Edit) -> Iterator[None]:
    """Edit the image stream that leaves the block."""
    module, steps = denoiser(name).get_submodule(BLOCK[name]), [0]

    def after(_module: Any, _args: tuple, output: Any) -> Any:
        steps[0] += 1
        if isinstance(output, tuple):
            return (output[0], on_cond(name, output[1], edit, steps[0] - 1))
        return on_cond(name, output, edit, steps[0] - 1)

    with module.register_forward_hook(after):
        yield


def gathered(name: str, place: Callable, **more: Any) -> list[Tensor]:
    """What `place` sees at each step of a plain run."""
    found: list[Tensor] = []

    def keep(value: Tensor, _step: int) -> Tensor:
        found.append(value.clone())
        return value

    with place(name, keep):
        by_hand(name, **more)
    return found


@functools.cache
def other_cache(name: str) -> ActivationCache:
    names = [f"{PREFIX[name]}.hook_pattern", f"{PREFIX[name]}.img.hook_z"]
    names.append("blocks.1.img.hook_resid_post")
    settings = short(name, prompt=OTHER)
    return hooked(name).run_with_cache(**settings, names_filter=names, show_progress=False)[1]


def same(found: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert (found - by_hand(name)).abs().max() > 1e-3


@families
def test_a_cache_holds_what_torch_hooks_see(name: str) -> None:
    cache = other_cache(name)
    for place, point in (
        (values, f"{PREFIX[name]}.img.hook_z"),
        (leaving, "blocks.1.img.hook_resid_post"),
    ):
        seen = torch.stack(gathered(name, place, prompt=OTHER))
        assert torch.equal(cache[point], seen)
        assert torch.equal(cache.at(step=1)[point], seen[1])
    patterns = torch.stack(gathered(name, attention, prompt=OTHER))
    torch.testing.assert_close(cache[f"{PREFIX[name]}.hook_pattern"], patterns)
    halves = cache.to(torch.bfloat16)
    assert torch.equal(halves[point], seen.to(torch.bfloat16)) and halves.axes == cache.axes


@families
def test_token_columns_times_a_factor(name: str) -> None:
    def edit(pattern: Tensor, _step: int) -> Tensor:
        pattern = pattern.clone()
        pattern[..., CAT] *= -2
        return pattern

    with attention(name, edit):
        expected = by_hand(name)
    site = Site(f"{PREFIX[name]}.hook_pattern", key="cat", branch="cond")
    same(run(name, (site, scale_token_columns(-2.0))), expected, name)


@families
def test_heads_times_factors(name: str) -> None:
    factors = torch.tensor([1.0, -1.5, 1.0, 0.25])
    with values(name, lambda z, _step: z * factors[:, None]):
        expected = by_hand(name)
    hook, z = scale_heads({(1, 1): -1.5, (1, 3): 0.25}), f"{PREFIX[name]}.img.hook_z"
    same(run(name, (Site(z, branch="cond"), hook)), expected, name)
    with attention(name, lambda pattern, _step: pattern * factors[:, None, None]):
        expected = by_hand(name)
    same(run(name, (Site(f"{PREFIX[name]}.hook_pattern", branch="cond"), hook)), expected, name)


@families
def test_means_in_place_of_heads(name: str) -> None:
    def edit(z: Tensor, _step: int) -> Tensor:
        z = z.clone()
        z[:, :, [0, 2]] = z[:, :, [0, 2]].mean((0, 1), keepdim=True)
        return z

    with values(name, edit):
        expected = by_hand(name)
    site = Site(f"{PREFIX[name]}.img.hook_z", heads=[0, 2], branch="cond")
    same(run(name, (site, ablate_heads("mean"))), expected, name)


@families
def test_means_of_another_run_in_place_of_heads(name: str) -> None:
    there = gathered(name, values, prompt=OTHER)

    def edit(z: Tensor, step: int) -> Tensor:
        z = z.clone()
        z[:, :, 1] = there[step][:, :, 1].mean((0, 1))
        return z

    with values(name, edit):
        expected = by_hand(name)
    site = Site(f"{PREFIX[name]}.img.hook_z", heads=1, branch="cond")
    hook = ablate_heads("mean", source=other_cache(name))
    same(run(name, (site, hook)), expected, name)


@families
def test_values_of_another_run(name: str) -> None:
    there = gathered(name, values, prompt=OTHER)

    def edit(z: Tensor, step: int) -> Tensor:
        z = z.clone()
        z[:, 3:40:2, 2] = there[step][:, 3:40:2, 2]
        return z

    with values(name, edit):
        expected = by_hand(name)
    at = Site(f"{PREFIX[name]}.img.hook_z", heads=2, pos=slice(3, 40, 2), branch="cond")
    same(run(name, (at, replace_with(other_cache(name)))), expected, name)


@families
def test_the_patterns_of_another_run(name: str) -> None:
    there = gathered(name, attention, prompt=OTHER)
    site = Site(f"{PREFIX[name]}.hook_pattern", branch="cond")
    for step in (None, 1):
        with attention(name, lambda _p, at, step=step: there[at if step is None else step]):
            expected = by_hand(name)
        same(run(name, (site, freeze_pattern(other_cache(name), step=step))), expected, name)


@families
def test_a_vector_on_some_tokens(name: str) -> None:
    post = "blocks.1.img.hook_resid_post"
    width = hooked(name).points[post].sizes["d_model"]
    vector = torch.randn(width, generator=torch.Generator().manual_seed(1))

    def edit(residual: Tensor, _step: int) -> Tensor:
        residual = residual.clone()
        residual[:, [0, 5]] += 3 * vector
        return residual

    with leaving(name, edit):
        expected = by_hand(name)
    site = Site(post, pos=[0, 5], branch="cond")
    same(run(name, (site, add_vector(vector, scale=3.0))), expected, name)


@families
def test_a_block_that_is_passed_by(name: str) -> None:
    module, entering = denoiser(name).get_submodule(BLOCK[name]), []

    def before(_module: Any, args: tuple, kwargs: dict) -> None:
        entering.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    with handle, leaving(name, lambda _residual, step: cond(name, entering[step])):
        expected = by_hand(name)
    hooks = bypass_block(hooked(name), 1, streams=("img",), branch="cond")
    same(run(name, *hooks), expected, name)
