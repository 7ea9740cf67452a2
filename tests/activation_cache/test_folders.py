"""Saved and spooled caches against hostile folders, and reducers with arguments."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import ActivationCache, HookContext, HookedDiffusion, Site
from diffusion_lens.activation_cache.cache import MIXED
from diffusion_lens.errors import CacheFileError, RunError
from diffusion_lens.reducers import Last, RunningMean, RunningSum, reducer_factory
from tests.pipelines import shared_pipe, short

Z = "blocks.0.attn.img.hook_z"
PATTERN = "blocks.0.attn.hook_pattern"


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd3"))


def recorded(model: HookedDiffusion, names: Any, **options: Any) -> ActivationCache:
    settings = short("sd3", steps=3)
    return model.run_with_cache(names_filter=names, show_progress=False, **settings, **options)[1]


def assert_same(found: ActivationCache, expected: ActivationCache) -> None:
    assert found.entries.keys() == expected.entries.keys()
    for key, steps in expected.entries.items():
        assert found.entries[key].keys() == steps.keys()
        for step, value in steps.items():
            assert found.entries[key][step].dtype == value.dtype
            assert torch.equal(found.entries[key][step], value)
    for what in ("axes", "parts", "sizes", "steps", "timesteps"):
        assert getattr(found, what) == getattr(expected, what)


UNEVEN = [Site(Z, steps=[1]), Site(PATTERN, heads=[0, 2], key=("txt", [0, 5])), "hook_latents"]


@pytest.mark.parametrize(
    "options",
    [{}, {"branch": "all"}, {"reduce": "mean"}, {"dtype": torch.bfloat16}],
    ids=["uneven steps", "branches", "reduced", "bfloat16"],
)
def test_spooled_caches_open_again(
    model: HookedDiffusion, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain = recorded(model, UNEVEN, **options)
    spooled = recorded(model, UNEVEN, spool=tmp_path / "spool", **options)
    assert_same(spooled, plain)
    again = ActivationCache.load(tmp_path / "spool")
    assert_same(again, plain)
    assert again.info["model"] == plain.info["model"]
    assert_same(ActivationCache.load(again.save(tmp_path / "saved")), plain)
    assert_same(ActivationCache.load(plain.save(tmp_path / "plain")), plain)


def test_a_step_that_is_spooled_again_takes_the_place_of_the_one_before(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    settings = short("sd3", steps=2)
    with model.caching("hook_latents", spool=tmp_path / "spool") as cache:
        model(**settings)
        model(**{**settings, "latents": settings["latents"] * 0.5})
    again = ActivationCache.load(tmp_path / "spool")["hook_latents"]
    assert torch.equal(again, cache["hook_latents"]) and len(again) == 2
    assert torch.equal(again[0], settings["latents"] * 0.5)


def test_a_spool_is_not_added_to(model: HookedDiffusion, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    first = recorded(model, Z, spool=folder)
    refusal = (
        r"holds a cache already, which cannot be added to: spool into a new folder; read that one "
        r"with `ActivationCache.load\("
    )
    with pytest.raises(CacheFileError, match=refusal):
        recorded(model, Z, spool=folder)
    with pytest.raises(CacheFileError, match="holds other files"):
        recorded(model, "hook_latents").save(folder)
    assert_same(ActivationCache.load(folder), first)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(CacheFileError, match="is not empty: spool into a new folder"):
        recorded(model, Z, spool=tmp_path / "thesis")
    with pytest.raises(CacheFileError, match="is a file; save into a new folder"):
        recorded(model, Z, spool=tmp_path / "thesis" / "thesis.tex")


def test_a_run_that_failed_leaves_a_spool_that_opens(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    def fail(_activation: Tensor, hook: HookContext) -> None:
        if hook.step == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.hooks([("hook_guided_pred", fail)]):
        recorded(model, Z, spool=tmp_path / "spool")
    assert ActivationCache.load(tmp_path / "spool").steps_of(Z) == [0, 1]
    with pytest.raises(ZeroDivisionError), model.hooks([("hook_latents", fail)]):
        recorded(model, Site(Z, steps=[2]), spool=tmp_path / "nothing")
    assert not list((tmp_path / "nothing").iterdir())


def test_damaged_spools(model: HookedDiffusion, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    recorded(model, Z, spool=folder)
    index, one = folder / "index.json", folder / "000001.safetensors"
    text, whole = index.read_text(), one.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(CacheFileError, match=message):
            ActivationCache.load(folder)

    one.write_bytes(whole[:100])
    refused("000001.safetensors cannot be read .*; a spooled cache needs every file")
    one.unlink()
    refused("000001.safetensors cannot be read")
    index.write_text(json.dumps({**json.loads(text), "entries": [[Z, "cond", 0, "../x"]]}))
    refused("lies in another folder")
    index.write_text(json.dumps({**json.loads(text), "entries": [[Z, "cond"]]}))
    refused("an index of another form")
    index.write_text(json.dumps({"spooled": False}))
    refused("whose run was killed before it ended")


def test_files_of_two_caches_are_not_read_as_one(model: HookedDiffusion, tmp_path: Path) -> None:
    first = recorded(model, Z).save(tmp_path / "first")
    second = recorded(model, "blocks.1.attn.img.hook_z").save(tmp_path / "second")
    (second / "activations.safetensors").replace(first / "activations.safetensors")
    with pytest.raises(CacheFileError, match="are of two caches, or saving was cut short"):
        ActivationCache.load(first)


def test_saving_over_a_cache_leaves_loaded_ones_alone(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    cache = recorded(model, Z)
    loaded = ActivationCache.load(cache.save(tmp_path / "cache"))
    other = recorded(model, "hook_latents")
    other.save(tmp_path / "cache")
    assert torch.equal(loaded[Z], cache[Z])
    assert_same(ActivationCache.load(tmp_path / "cache"), other)
    loaded.save(tmp_path / "cache")
    assert_same(ActivationCache.load(tmp_path / "cache"), cache)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "activations.safetensors",
        "index.json",
    ]


def test_caches_without_the_newer_fields_are_read(model: HookedDiffusion, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = recorded(model, Z).save(tmp_path / "cache")
    index = json.loads((folder / "index.json").read_text())
    del index["sizes"]
    (folder / "index.json").write_text(json.dumps(index))
    tensors = load_file(folder / "activations.safetensors")
    save_file(tensors, folder / "activations.safetensors")
    assert torch.equal(ActivationCache.load(folder)[Z], recorded(model, Z)[Z])


def test_an_empty_cache_and_strange_names_survive(tmp_path: Path) -> None:
    assert not ActivationCache.load(ActivationCache().save(tmp_path / "empty")).keys()
    strange = ActivationCache(
        {("blocks.*.x/..\\", "üncond"): {7: torch.ones(0, 3).T, 0: torch.ones(3, 0)}},
        parts={"blocks.*.x/..\\": MIXED},
        times={7: 1.5, 0: 999.0},
    )
    assert_same(ActivationCache.load(strange.save(tmp_path / "strange")), strange)


def test_words_at_other_tokens_in_another_run_are_no_single_part(model: HookedDiffusion) -> None:
    settings = short("sd3", steps=2)
    with model.caching(Site(PATTERN, key="cat", branch="cond")) as cache:
        model(**{**settings, "prompt": "a cat"})
        part = cache.parts[PATTERN]
        model(**{**settings, "prompt": "a big red cat"})
    assert part != MIXED and cache.parts[PATTERN] == MIXED


@pytest.mark.parametrize("name", [Z, PATTERN])
@pytest.mark.parametrize("over", ["head", ["batch", "head"]], ids=str)
def test_reducers_with_arguments_average_over_axes(
    model: HookedDiffusion, name: str, over: Any
) -> None:
    every = recorded(model, name, branch="all")
    axes = [every.axes[name].index(axis) for axis in ([over] if isinstance(over, str) else over)]
    for reducer in (RunningMean(over=over), RunningSum(over=over)):
        found = recorded(model, name, branch="all", reduce=reducer)
        for branch in ("cond", "uncond"):
            means = every.branch(branch)[name].mean([axis + 1 for axis in axes])
            expected = means.sum(0) if type(reducer) is RunningSum else means.mean(0)
            torch.testing.assert_close(found.branch(branch)[name], expected)
        assert found.axes[name] == tuple(
            axis for axis in every.axes[name] if axis not in reducer.over
        )
        assert reducer.total is None and reducer.count == 0


def test_every_hook_point_gets_a_reducer_of_its_own(model: HookedDiffusion) -> None:
    names = [Z, "blocks.1.attn.img.hook_z"]
    plain = recorded(model, names)
    for reducer in (Last(), RunningMean()):
        found = recorded(model, names, reduce=reducer)
        for name in names:
            expected = plain[name][-1] if isinstance(reducer, Last) else plain[name].mean(0)
            torch.testing.assert_close(found[name], expected)


def test_reducers_that_do_not_fit(model: HookedDiffusion) -> None:
    refusal = (
        r"RunningMean\(over=\('heads',\)\) at blocks.0.attn.img.hook_z, whose axes are .*: "
        r"there is no axis 'heads'. Closest: 'head'."
    )
    with pytest.raises(RunError, match=refusal):
        recorded(model, Z, reduce=RunningMean(over="heads"))
    used = RunningMean()
    used.update(torch.ones(1), HookContext(Z, 0, "img", ("batch",), 0, "cond"))
    with pytest.raises(RunError, match=r"RunningMean\(\) has reduced values already"):
        inspect.unwrap(reducer_factory)(used)


@pytest.mark.parametrize("reduce", [None, "mean", "last", RunningMean(over="head")], ids=str)
def test_reduced_values_are_kept_in_the_precision_that_was_asked_for(
    model: HookedDiffusion, reduce: Any
) -> None:
    plain = recorded(model, Z, reduce=reduce)[Z]
    half = recorded(model, Z, reduce=reduce, dtype=torch.bfloat16)[Z]
    assert half.dtype == torch.bfloat16 and torch.equal(half, plain.to(torch.bfloat16))
