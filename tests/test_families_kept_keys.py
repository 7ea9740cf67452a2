"""FLUX.2 klein KV: keys and values of a given image are kept from the first step for later ones."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import attention_maps
from diffusion_lens.errors import EngineError
from diffusion_lens.hook_points.selectors import Tokens
from tests.test_families_references import AT_SIZE, OWN, PROMPT, SHORT, picture
from tests.tiny_pipelines import references as pipelines
from tests.tiny_pipelines.families import quiet

pytestmark = pytest.mark.filterwarnings("ignore")
exhaustive = pytest.mark.exhaustive


@functools.cache
def shared(name: str) -> HookedDiffusion:
    return HookedDiffusion(quiet(getattr(pipelines, name)))


KEPT: dict[str, Any] = {**SHORT, "num_inference_steps": 3, "text_encoder_out_layers": (1, 2, 3)}
GIVEN_SIZE = (64, 72)


def kept_run(model: HookedDiffusion, hooks: Any = (), **changes: Any) -> Tensor:
    given = {**AT_SIZE, **KEPT, "image": picture(*GIVEN_SIZE), **changes}
    return model.run_with_hooks(PROMPT, seed=0, fwd_hooks=list(hooks), **given).images


def kept_by_hand(model: HookedDiffusion, **changes: Any) -> Tensor:
    given = {**AT_SIZE, **KEPT, "image": picture(*GIVEN_SIZE), **changes}
    pipe: Any = model.pipe
    return pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(0), **given)[0]


@contextlib.contextmanager
def products(change: Any = None) -> Iterator[list[tuple[Tensor, ...]]]:
    """Every call of the fused product outside the text encoder: query, key, value, output."""
    seen: list[tuple[Tensor, ...]] = []
    original = functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not denoising[0]:
            return original(query, key, value, *args, **kwargs)
        if change is not None:
            query, key, value = change(len(seen), query, key, value)
        output = original(query, key, value, *args, **kwargs)
        seen.append((query.clone(), key.clone(), value.clone(), output.clone()))
        return output

    model, denoising = shared("flux2_klein_kv"), [False]
    start = model.denoiser.register_forward_pre_hook(lambda *_: denoising.__setitem__(0, True))
    end = model.denoiser.register_forward_hook(lambda *_: denoising.__setitem__(0, False))
    functional.scaled_dot_product_attention = watched
    try:
        yield seen
    finally:
        functional.scaled_dot_product_attention = original
        start.remove()
        end.remove()


def references(model: HookedDiffusion) -> int:
    tokens: list[int] = []
    see = (Site("hook_latents", steps=[0]), lambda value, _hook: tokens.append(value.shape[1]))
    kept_run(model, [see], num_inference_steps=1)
    return tokens[0] - OWN


def joined(pair: Any, text: int, count: int) -> tuple[Tensor, ...]:
    """The two products of a step that keeps keys, in the order of the sequence, and who sees whom.

    Returns:
        Queries, keys, values, outputs, hidden pairs.
    """
    (query, key, value, output), (own, _, _, own_output) = pair

    def among(others: Tensor, inside: Tensor) -> Tensor:
        return torch.cat([others[:, :, :text], inside, others[:, :, text:]], 2)

    hidden = torch.zeros(key.shape[2], key.shape[2], dtype=torch.bool)
    hidden[text : text + count] = True
    hidden[text : text + count, text : text + count] = False
    return among(query, own), key, value, among(output, own_output), hidden


def own_pattern(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    scores = query.double() @ key.double().mT / math.sqrt(query.shape[-1])
    return (scores if hidden is None else scores.masked_fill(hidden, -math.inf)).softmax(-1)


def expected_values(model: HookedDiffusion) -> dict[tuple[int, str], Tensor]:
    """Each product's q, k, v, z and pattern in every step, from the calls of the kernel alone."""
    count, text, blocks = references(model), 60, model.n_blocks
    with products() as seen:
        kept_by_hand(model)
    calls, found = iter(seen), {}
    for step in range(3):
        for block in range(blocks):
            one = next(calls)
            if step == 0:
                query, key, value, output, hidden = joined((one, next(calls)), text, count)
            else:
                query, key, value, output, hidden = *one, None
            assert key.shape[2] == text + count + OWN
            assert query.shape[2] == text + OWN + (count if step == 0 else 0)
            here = f"blocks.{block}.attn"
            for which, tensor in (("q", query), ("k", key), ("v", value), ("z", output)):
                shown = tensor.transpose(1, 2)
                found[step, f"{here}.txt.hook_{which}"] = shown[:, :text]
                found[step, f"{here}.img.hook_{which}"] = shown[:, text:]
            found[step, f"{here}.hook_pattern"] = own_pattern(query, key, hidden).float()
    assert next(calls, None) is None
    return found


def test_kept_keys_are_in_the_products_of_every_step() -> None:
    model, found = shared("flux2_klein_kv"), {}
    expected = expected_values(model)

    def see(value: Tensor, hook: Any) -> None:
        assert (hook.step, hook.name) not in found
        found[hook.step, hook.name] = value.clone()

    names = sorted({name for _, name in expected})
    image = kept_run(model, [(name, see) for name in names])
    assert torch.equal(image, kept_by_hand(model))
    assert found.keys() == expected.keys()
    for at, value in expected.items():
        if at[1].endswith(("pattern", "z")):
            torch.testing.assert_close(found[at], value, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(found[at], value), at


def test_hooks_beside_kept_keys_change_nothing_and_every_point_fires_once_a_step() -> None:
    model, fired = shared("flux2_klein_kv"), []
    expected = kept_by_hand(model)
    hooks = [("**", lambda _value, hook: fired.append((hook.step, hook.name)))]
    assert torch.equal(kept_run(model, hooks), expected)
    assert len(fired) == len(set(fired))
    assert set(fired) == {(step, name) for step in range(3) for name in model.points}


@exhaustive
def test_streams_beside_kept_keys_are_the_tokens_that_are_there() -> None:
    model, count = shared("flux2_klein_kv"), references(shared("flux2_klein_kv"))
    last = model.n_blocks - 1
    seen: dict[tuple[int, str], tuple[Any, ...]] = {}

    def see(value: Tensor, hook: Any) -> None:
        seen[hook.step, hook.name] = (value.shape, hook.queries, hook.streams)

    streams = (
        "blocks.*.img.hook_resid_*",
        "blocks.*.img.hook_mlp_update",
        "blocks.*.attn.img.hook_q",
    )
    hooks = [(f"blocks.{last}.attn.hook_pattern", see), *((name, see) for name in streams)]
    kept_run(model, hooks)
    for (step, name), (shape, queries, keys) in seen.items():
        own = OWN + (count if step == 0 else 0)
        if name.endswith("pattern"):
            assert queries == {"txt": slice(0, 60), "img": slice(60, 60 + own)}
            assert keys == {"txt": slice(0, 60), "img": slice(60, 60 + OWN + count)}
        else:
            assert shape[1] == own


@exhaustive
def test_residuals_beside_kept_keys_are_sums_and_the_blocks_own() -> None:
    model, found = shared("flux2_klein_kv"), {}
    block, plain = model.n_blocks - 1, []
    inside = f"blocks.{block}.img."

    def see(value: Tensor, hook: Any) -> None:
        found[hook.step, hook.name.removeprefix(inside)] = value.clone()

    pipe: Any = model.pipe
    module = pipe.transformer.single_transformer_blocks[-1]
    handle = module.register_forward_hook(lambda _m, _a, output: plain.append(output.clone()))
    kept_by_hand(model)
    handle.remove()
    parts = ("resid_pre", "attn_update", "mlp_update", "resid_post")
    kept_run(model, [(f"{inside}hook_{part}", see) for part in parts])
    for step in range(3):
        before, attn, mlp, after = (found[step, f"hook_{part}"] for part in parts)
        torch.testing.assert_close(before + attn + mlp, after, rtol=1e-4, atol=1e-5)
        assert torch.equal(after, plain[step][:, 60:])


@exhaustive
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_edits_beside_kept_keys_are_those_of_plain_hooks(step: int, which: str) -> None:
    model = shared("flux2_klein_kv")
    count, text, blocks, head = references(model), 60, model.n_blocks, 1
    block = blocks - 1
    calls = [2 * block, 2 * block + 1] if step == 0 else [2 * blocks + block]

    def change(call: int, *given: Tensor) -> tuple[Tensor, ...]:
        place = "qkv".index(which)
        if call not in calls:
            return given
        tensor = given[place].clone()
        references_alone = step == 0 and call == calls[1]
        tensor[:, head, 0 if references_alone else text :] *= 3
        return (*given[:place], tensor, *given[place + 1 :])

    with products(change):
        expected = kept_by_hand(model)
    site = Site(f"blocks.{block}.attn.img.hook_{which}", heads=[head], steps=[step])
    assert torch.equal(kept_run(model, [(site, lambda value, _hook: value * 3)]), expected)
    assert not torch.equal(expected, kept_by_hand(model))
    assert count


@exhaustive
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("what", ["pattern", "attn_scores"])
def test_edited_patterns_beside_kept_keys_move_z_by_what_they_weigh(step: int, what: str) -> None:
    model, count, text = shared("flux2_klein_kv"), references(shared("flux2_klein_kv")), 60
    name = f"blocks.{model.n_blocks - 1}.attn"
    given = Tokens("img", indices=slice(0, count))
    site = Site(f"{name}.hook_{what}", key=given, query="img", steps=[step])
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        found[hook.name.rpartition("_")[2]] = value.clone()

    def weaken(value: Tensor, _hook: Any) -> Tensor:
        return value * 0 if what == "pattern" else value - 2

    reads = [(Site(f"{name}.{of}", steps=[step]), keep) for of in ("img.hook_z", "img.hook_v")]
    kept_run(model, [(site, weaken), *reads, (Site(f"{name}.txt.hook_v", steps=[step]), keep)])
    plain = expected_values(model)
    pattern = plain[step, f"{name}.hook_pattern"][:, :, text:].double()
    values = torch.cat([plain[step, f"{name}.{of}.hook_v"] for of in ("txt", "img")], 1)
    if what == "pattern":
        pattern[..., text : text + count] = 0
    else:
        pattern[..., text : text + count] *= math.exp(-2)
        pattern = pattern / pattern.sum(-1, keepdim=True)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, values.double())
    torch.testing.assert_close(found["z"].double(), z, rtol=1e-4, atol=1e-5)


@exhaustive
def test_what_kept_keys_do_not_allow_is_refused() -> None:
    model = shared("flux2_klein_kv")
    given = {**AT_SIZE, **KEPT, "image": picture(*GIVEN_SIZE)}
    with pytest.raises(EngineError, match=r"before those of the image .*Flux2KleinPipeline of the"):
        attention_maps(model, Run(PROMPT, seed=0, **given), words=["cat"])
    _, cache = model.run_with_cache(PROMPT, seed=0, names_filter=["hook_sample"], **given)
    with pytest.raises(EngineError, match="are kept in step 0; an evaluation that begins at step"):
        model.denoise(cache.at(step=1)["hook_sample"], prompt=PROMPT, step=1, **given)
    with (
        model.concept_streams(["cat"], encoder_settings={"text_encoder_out_layers": (1, 2, 3)}),
        pytest.raises(EngineError, match="call each block a second time"),
    ):
        kept_run(model, [("blocks.0.concept.hook_resid_post", lambda _value, _hook: None)])


@exhaustive
def test_parts_of_patterns_beside_kept_keys_are_cut_from_the_whole() -> None:
    model, whole, part = shared("flux2_klein_kv"), [], []
    name, word = "blocks.0.attn.hook_pattern", model.words(PROMPT, "cat", max_sequence_length=60)
    sites = (Site(name), Site(name, query="img", key="cat"))
    hooks = [
        (site, lambda value, _hook, to=to: to.append(value.clone()))
        for site, to in zip(sites, (whole, part), strict=True)
    ]
    kept_run(model, hooks)
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[:, :, 60:, list(word)], other, rtol=1e-4, atol=1e-7)
    assert len(part) == 3


@exhaustive
def test_without_a_given_image_nothing_is_kept() -> None:
    model, seen = shared("flux2_klein_kv"), []
    hooks = [("blocks.0.attn.hook_pattern", lambda value, _: seen.append(value.shape[2:]))]
    assert torch.equal(kept_run(model, hooks, image=None), kept_by_hand(model, image=None))
    assert seen == [(60 + OWN, 60 + OWN)] * 3


@exhaustive
@pytest.mark.parametrize("step", [0, 1])
def test_edited_streams_reach_the_keys_that_later_steps_use(step: int) -> None:
    model, calls = shared("flux2_klein_kv"), []
    pipe: Any = model.pipe

    def change(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        calls.append(kwargs["hidden_states"].shape[1])
        if len(calls) - 1 != step:
            return None
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * 1.5}

    block = pipe.transformer.transformer_blocks[0]
    handle = block.register_forward_pre_hook(change, with_kwargs=True)
    expected = kept_by_hand(model)
    handle.remove()
    site, found = Site("blocks.0.img.hook_resid_pre", steps=[step]), {}

    def keep(value: Tensor, hook: Any) -> None:
        found[hook.step] = value.clone()

    later = [(Site("blocks.1.attn.img.hook_k"), keep)]
    image = kept_run(model, [(site, lambda value, _hook: value * 1.5), *later])
    assert torch.equal(image, expected)
    assert not torch.equal(expected, kept_by_hand(model))
    count = references(model)
    assert calls == [OWN + count, OWN, OWN]
    assert torch.equal(found[0][:, :count], found[2][:, :count])


@exhaustive
def test_sums_and_heads_beside_kept_keys_in_a_batch() -> None:
    model, found = shared("flux2_klein_kv"), {}

    def see(value: Tensor, hook: Any) -> None:
        found[hook.step, hook.name.removeprefix("blocks.0.")] = value.clone()

    names = ("img.hook_resid_pre", "img.hook_attn_update", "img.hook_resid_mid")
    names += ("attn.hook_pattern", "attn.img.hook_v", "attn.txt.hook_v", "attn.img.hook_z")
    given = {**AT_SIZE, **KEPT, "image": picture(*GIVEN_SIZE)}
    prompts = [PROMPT, "a dog"]
    hooks = [(f"blocks.0.{name}", see) for name in names]
    out = model.run_with_hooks(prompts, seed=0, fwd_hooks=hooks, **given)
    assert torch.equal(out.images, model(prompts, seed=0, **given).images)
    for step in range(3):
        before, update, mid, pattern, *values, z = (found[step, name] for name in names)
        torch.testing.assert_close(before + update, mid, rtol=1e-4, atol=1e-5)
        joint = torch.cat(values[::-1], 1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", pattern[:, :, 60:], joint)
        torch.testing.assert_close(mixed, z, rtol=1e-4, atol=1e-5)
        assert len(z) == 2


@exhaustive
def test_an_emptied_cache_is_refused() -> None:
    model, given = shared("flux2_klein_kv"), {}

    def keep(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        given.update(kwargs)

    handle = model.denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    kept_by_hand(model)
    handle.remove()
    hooks = [("blocks.0.img.hook_resid_pre", lambda _value, _hook: None)]
    with model.hooks(hooks), pytest.raises(EngineError, match="the run that made it is over"):
        model.denoiser(**given)


@exhaustive
def test_gradients_flow_through_the_step_that_keeps_keys() -> None:
    model, found = shared("flux2_klein_kv"), []
    given = {**AT_SIZE, **KEPT, "image": picture(*GIVEN_SIZE)}
    _, cache = model.run_with_cache(PROMPT, seed=0, names_filter=["hook_sample"], **given)
    points = ("blocks.0.attn.img.hook_q", "blocks.0.attn.hook_pattern")
    for hooks in ([], [(point, lambda _value, _hook: None) for point in points]):
        latents = cache.at(step=0)["hook_sample"].clone().requires_grad_()
        with model.hooks(hooks):
            guided = model.denoise(latents, prompt=PROMPT, step=0, **given).guided
        found.append((guided.detach(), *torch.autograd.grad(guided.square().sum(), latents)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)
    assert found[0][1].abs().max() > 0
