from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lens import ActivationCache, HookedDiffusion, Site
from diffusion_lens.errors import CacheKeyError, RunError
from diffusion_lens.interventions import (
    ablate_heads,
    add_vector,
    bypass_block,
    freeze_pattern,
    replace_with,
    scale_heads,
    scale_token_columns,
)
from tests.pipelines import FAMILIES, latents_of, shared_pipe, short

OTHER = "two dogs in a snowy park"
Z = {"sd": "blocks.1.cross_attn.img.hook_z", "flux": "blocks.1.attn.img.hook_z"}
PATTERN = {"sd": "blocks.1.cross_attn.hook_pattern", "flux": "blocks.1.attn.hook_pattern"}


@functools.cache
def hooked(name: str) -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(name))


@functools.cache
def plain(name: str) -> torch.Tensor:
    return latents_of(hooked(name)(**short(name)))


def run(name: str, *hooks: tuple, **more: Any) -> torch.Tensor:
    return latents_of(hooked(name).run_with_hooks(**short(name, **more), fwd_hooks=hooks))


@functools.cache
def whole_cache(name: str, prompt: str | None = None) -> ActivationCache:
    more: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    names = ["**.hook_z", "**.hook_pattern", "**.hook_resid_post"]
    return hooked(name).run_with_cache(**short(name, **more), names_filter=names, branch="all")[1]


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_zero_ablation_of_a_head_equals_scaling_it_by_zero(name: str) -> None:
    site = Site(Z[name], heads=2)
    ablated = run(name, (site, ablate_heads()))
    assert torch.equal(ablated, run(name, (site, scale_heads(0.0))))
    assert not torch.equal(ablated, plain(name))


def test_mean_ablation_makes_every_token_say_the_same() -> None:
    seen = []
    site = Site(Z["sd"], heads=[1, 3], branch="cond", steps=0)
    look = (Site(Z["sd"], steps=0, branch="cond"), lambda z, _hook: seen.append(z.clone()))
    run("sd", look, (site, ablate_heads("mean")), look)
    before, after = seen
    expected = before[:, :, [1, 3]].mean((0, 1), keepdim=True).expand_as(after[:, :, [1, 3]])
    torch.testing.assert_close(after[:, :, [1, 3]], expected)
    assert torch.equal(after[:, :, [0, 2]], before[:, :, [0, 2]])


def test_resampling_takes_another_sample_of_the_batch() -> None:
    settings = short("sd", prompt=["a red cat on the glass table", OTHER])
    settings["latents"] = settings["latents"].repeat(2, 1, 1, 1)
    seen = []
    look = (Site(Z["sd"], steps=0, branch="cond"), lambda z, _hook: seen.append(z.clone()))
    edit = (Site(Z["sd"], branch="cond"), ablate_heads("resample"))
    hooked("sd").run_with_hooks(**settings, fwd_hooks=[look, edit, look])
    assert torch.equal(seen[1], seen[0].flip(0))
    assert not torch.equal(seen[1], seen[0])


def test_resampling_alone_in_a_batch_needs_a_source() -> None:
    with pytest.raises(RunError, match=r"needs other samples .* give several prompts, or source="):
        run("sd", (Z["sd"], ablate_heads("resample")))
    other = whole_cache("sd", OTHER)
    assert not torch.equal(
        run("sd", (Z["sd"], ablate_heads("resample", source=other))), plain("sd")
    )


def test_an_unknown_ablation_is_refused() -> None:
    with pytest.raises(RunError, match="'zero', 'mean' or 'resample'"):
        ablate_heads("median")


def test_factors_by_block_and_head_touch_only_those_heads() -> None:
    seen = {}

    def look(z: torch.Tensor, hook: object) -> None:
        seen.setdefault(hook.block, []).append(z.clone())  # type: ignore[attr-defined]

    where = Site("blocks.*.cross_attn.img.hook_z", steps=0, branch="cond")
    run("sd", (where, scale_heads({(1, 2): 0.5})), (where, look))
    run("sd", (where, look))
    edited, untouched = seen[1]
    assert torch.equal(edited[:, :, 2], untouched[:, :, 2] * 0.5)
    assert torch.equal(edited[:, :, [0, 1, 3]], untouched[:, :, [0, 1, 3]])
    assert torch.equal(*seen[0])


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_factor_one_on_token_columns_changes_nothing(name: str) -> None:
    site = Site(PATTERN[name], key="cat", branch="cond")
    assert torch.equal(run(name, (site, scale_token_columns(1.0))), plain(name))
    assert not torch.equal(run(name, (site, scale_token_columns(-2.0))), plain(name))


def test_token_columns_are_scaled_and_rows_not_renormalised() -> None:
    seen = []
    place = hooked("sd").words("a red cat on the glass table", "cat")
    site = Site(PATTERN["sd"], key="cat", branch="cond", steps=0)
    look = (Site(PATTERN["sd"], branch="cond", steps=0), lambda p, _hook: seen.append(p.clone()))
    run("sd", look, (site, scale_token_columns(3.0)), look)
    before, after = seen
    torch.testing.assert_close(after[..., place], before[..., place] * 3)
    others = [column for column in range(before.shape[-1]) if column not in place]
    assert torch.equal(after[..., others], before[..., others])


def test_token_columns_exist_in_patterns_only() -> None:
    with pytest.raises(RunError, match=r"works on patterns, .*hook_z has axes"):
        run("sd", (Z["sd"], scale_token_columns(2.0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_replacing_with_the_own_cache_is_a_no_op(name: str) -> None:
    hooks = [("**.hook_z", replace_with(whole_cache(name)))]
    alive = [
        (point, hooks[0][1])
        for point in hooked(name).hook_names("**.hook_z")
        if not hooked(name).points[point].dead
    ]
    assert torch.equal(run(name, *alive), plain(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_replacing_every_prediction_gives_the_other_run(name: str) -> None:
    settings = short(name, prompt=OTHER)
    there, cache = hooked(name).run_with_cache(
        **settings, names_filter="hook_noise_pred", branch="all"
    )
    patched = run(name, ("hook_noise_pred", replace_with(cache)))
    assert torch.equal(patched, latents_of(there))


def test_a_part_is_replaced_by_the_same_part_of_a_whole_cache() -> None:
    other = whole_cache("sd", OTHER)
    seen = []
    edit = (Site(Z["sd"], heads=[3], branch="cond"), replace_with(other))
    look = (Site(Z["sd"], branch="cond", steps=1), lambda z, _hook: seen.append(z.clone()))
    run("sd", edit, look)
    assert torch.equal(seen[0][:, :, 3], other.cond.at(step=1)[Z["sd"]][:, :, 3])
    assert not torch.equal(seen[0][:, :, 0], other.cond.at(step=1)[Z["sd"]][:, :, 0])


def test_what_the_cache_lacks_is_named() -> None:
    cache = whole_cache("sd")
    with pytest.raises(CacheKeyError, match="is not in this cache"):
        run("sd", ("blocks.1.img.hook_resid_pre", replace_with(cache)))
    with pytest.raises(RunError, match=r"at the steps \[0, 1, 2\], not at step 3"):
        run("sd", (Z["sd"], replace_with(cache)), num_inference_steps=3)
    wrong = hooked("sd").run_with_cache(
        **short("sd", height=16, width=32, latents=torch.zeros(1, 4, 8, 16)), names_filter=Z["sd"]
    )[1]
    with pytest.raises(RunError, match="prompts, image size and Site must be those"):
        run("sd", (Site(Z["sd"], branch="cond"), replace_with(wrong)))


def test_frozen_patterns_stay_those_of_the_other_run() -> None:
    other = whole_cache("flux", OTHER)
    seen = []
    look = (Site(PATTERN["flux"], steps=1), lambda p, _hook: seen.append(p.clone()))
    run("flux", (PATTERN["flux"], freeze_pattern(other, step=0)), look)
    torch.testing.assert_close(seen[0], other.at(step=0)[PATTERN["flux"]])


def test_a_vector_is_added_to_every_selected_token() -> None:
    name = "blocks.1.img.hook_resid_post"
    width = hooked("sd").points[name].sizes["d_model"]
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    seen = []
    look = (Site(name, steps=0, branch="cond"), lambda x, _hook: seen.append(x.clone()))
    edit = (Site(name, pos=slice(0, 3), branch="cond"), add_vector(vector, scale=2.0))
    run("sd", look, edit, look)
    assert torch.equal(seen[1][:, :3], seen[0][:, :3] + 2 * vector)
    assert torch.equal(seen[1][:, 3:], seen[0][:, 3:])
    with pytest.raises(RunError, match=f"a vector of {width + 1} numbers"):
        run("sd", (name, add_vector(torch.zeros(width + 1))))
    with pytest.raises(RunError, match="takes one vector"):
        add_vector(torch.zeros(2, 3))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bypassed_block_hands_on_what_it_got(name: str) -> None:
    model = hooked(name)
    seen = {}

    def look(value: torch.Tensor, hook: object) -> None:
        seen[hook.name, hook.branch, hook.step] = value.clone()  # type: ignore[attr-defined]

    pairs = bypass_block(model, 1)
    run(name, *pairs, *((site.with_(), look) for site, _ in pairs))
    assert seen
    for at, value in seen.items():
        if at[0].endswith("resid_pre"):
            after = (at[0].replace("resid_pre", "resid_post"), *at[1:])
            assert torch.equal(seen[after], value)


def test_a_block_without_that_stream_is_not_bypassed() -> None:
    with pytest.raises(RunError, match=r"block 1 of .* has the streams \('img',\), asked for"):
        bypass_block(hooked("sd"), 1, streams=("txt",))
    with pytest.raises(RunError, match="the model has 7 blocks"):
        bypass_block(hooked("sd"), 99)


@pytest.mark.parametrize(
    "hook",
    [
        ablate_heads("mean"),
        scale_heads(0.5),
        scale_heads({(1, 2): 3.0}),
        scale_token_columns(-2.0),
        add_vector(torch.zeros(3), scale=0.5),
        replace_with(ActivationCache()),
    ],
)
def test_a_report_says_what_was_done(hook: object) -> None:
    assert repr(hook).startswith(type(hook).__name__)
    assert "object at 0x" not in repr(hook)
    assert hook.__class__.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [replace_with, freeze_pattern])
def test_a_cache_of_one_branch_does_not_serve_another(make: Any) -> None:
    name = PATTERN["sd"]
    cache = hooked("sd").run_with_cache(**short("sd"), names_filter=name)[1]
    with pytest.raises(
        CacheKeyError, match=r"in the branches \['cond'\].*'uncond'.*branch=\"all\""
    ):
        run("sd", (name, make(cache)))
    assert torch.equal(run("sd", (Site(name, branch="cond"), make(cache))), plain("sd"))


@pytest.mark.slow
@pytest.mark.parametrize("reduce", [None, "last"])
def test_a_cached_part_is_put_only_where_it_was_taken_from(tmp_path: Path, reduce: Any) -> None:
    name, more = Z["sd"], {"branch": "cond"}
    cache = hooked("sd").run_with_cache(
        **short("sd", steps=1), names_filter=Site(name, heads=[0]), reduce=reduce
    )[1]
    again = ActivationCache.load(cache.save(tmp_path / "cache"))
    whole = latents_of(hooked("sd")(**short("sd", steps=1)))
    for one in (cache, again, cache.cond, again.cond.to("cpu").detach()):
        assert one.parts == {name: ((2, slice(0, 1)),)}
        with pytest.raises(RunError, match="holds a part of"):
            run("sd", (Site(name, heads=[1], **more), replace_with(one)), steps=1)
        with pytest.raises(RunError, match="holds a part of"):
            run("sd", (Site(name, **more), replace_with(one)), steps=1)
        patched = run("sd", (Site(name, heads=[0], steps=0, **more), replace_with(one)), steps=1)
        assert torch.equal(patched, whole) or reduce
    words = hooked("sd").run_with_cache(
        **short("sd"), names_filter=Site(PATTERN["sd"], heads=[0, 2], key="cat")
    )[1]
    again = ActivationCache.load(words.save(tmp_path / "words"))
    assert again.parts == words.parts
    site = Site(PATTERN["sd"], heads=[2, 0], key="cat")
    with pytest.raises(RunError, match="holds a part of"):
        run("sd", (site, replace_with(again)))
    assert torch.equal(run("sd", (site.with_(heads=[0, 2]), replace_with(again))), plain("sd"))
