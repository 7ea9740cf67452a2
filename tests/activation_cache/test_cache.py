"""Reading, reducing, saving and bounding what was recorded."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion_lens import ActivationCache, HookContext, HookedDiffusion, Run, Site
from diffusion_lens.activation_cache.cache import readable_bytes
from diffusion_lens.errors import CacheBudgetError, CacheFileError, CacheKeyError, RunError
from diffusion_lens.reducers import RunningMean
from tests.pipelines import latents_of, shared_pipe, short

Z = "blocks.0.attn.img.hook_z"
POST = "**.img.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd3"))


def recorded(model: HookedDiffusion, names: Any = None, **options: Any) -> ActivationCache:
    settings = short("sd3", steps=3)
    return model.run_with_cache(names_filter=names, show_progress=False, **settings, **options)[1]


@pytest.fixture(scope="module")
def cache(model: HookedDiffusion) -> ActivationCache:
    return recorded(model, [POST, "**.img.hook_z", "hook_latents"], branch="all")


def test_names_have_a_step_axis_in_front(cache: ActivationCache) -> None:
    z = cache.cond[Z]
    assert z.shape == (3, 1, 64, 4, 6) and cache.axes[Z] == ("batch", "pos", "head", "d_head")
    assert torch.equal(cache.cond["attn.img.hook_z", 0], z)
    assert torch.equal(cache["attn.img.hook_z", 0, "uncond"], cache.uncond[Z])
    assert torch.equal(cache.branch("uncond").at(step=1)[Z], cache.uncond[Z][1])
    assert torch.equal(cache.at(step=1).uncond[Z], cache.uncond[Z][1])
    assert cache.steps == [0, 1, 2] and sorted(cache.branches) == ["cond", "uncond"]
    assert len(cache.timesteps) == 3 and cache.timesteps == sorted(cache.timesteps, reverse=True)


def test_caches_are_read_like_dictionaries(cache: ActivationCache) -> None:
    one = cache.cond
    assert Z in one and ("attn.img.hook_z", 0) in one and "nonsense" not in one and 3 not in one
    assert list(one) == one.keys() == [name for name, _ in one.items()] and len(one) == len(
        list(one)
    )
    assert all(torch.equal(a, b) for a, (_, b) in zip(one.values(), one.items(), strict=True))
    assert "ActivationCache(" in repr(cache) and "steps 0-2" in repr(cache)


def test_blocks_stack(cache: ActivationCache) -> None:
    stacked = cache.cond.stack("img.hook_resid_post")
    assert stacked.shape == (3, 3, 1, 64, 24)
    assert torch.equal(stacked[1], cache.cond["blocks.1.img.hook_resid_post"])
    assert torch.equal(cache.at(step=2).cond.stack(POST), stacked[:, 2])


def test_unequal_resolutions_do_not_stack() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    cache = model.run_with_cache(names_filter=POST, show_progress=False, **short("sd"))[1]
    with pytest.raises(CacheKeyError) as caught:
        cache.stack("img.hook_resid_post")
    assert (
        "has 2 groups in this cache that do not stack, since they differ in shape: shape "
        "(1, 256, 16), branch cond, steps 0-2: blocks.0"
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda c: c[Z],
            "was cached in the branches ['uncond', 'cond']: take `cache.uncond[name]`",
        ),
        (lambda c: c.cond["blocks.0.attn.img.hook_y"], "Closest: blocks.0.attn.img.hook_z"),
        (lambda c: c["attn.img.hook_z", 0, "skip"], "not 'skip'"),
        (lambda c: c.branch("skip"), "branch 'skip' is not in this cache, it holds"),
        (lambda c: c.at(step=7), "step 7 is not in this cache, it holds 0-2"),
        (lambda c: c[3], "a cache is indexed by a name, or by (short name, block), got 3"),
        (lambda c: c[("a",)], "a cache is indexed by a name"),
    ],
)
def test_what_is_not_there(cache: ActivationCache, ask: Any, message: str) -> None:
    with pytest.raises(CacheKeyError) as caught:
        ask(cache)
    assert message in str(caught.value)


def test_the_default_is_light(model: HookedDiffusion) -> None:
    names = set(recorded(model).keys())
    assert {"hook_latents", "hook_noise_pred", "hook_guided_pred"} <= names and len(names) <= 4


def test_branches_and_steps_are_chosen(model: HookedDiffusion) -> None:
    cache = recorded(model, [Site(Z, steps=2), "hook_latents"], steps=[0, 1], branch="uncond")
    assert cache.branches == ["uncond"]
    assert list(cache.entries[Z, "uncond"]) == [2]
    assert list(cache.entries["hook_latents", "uncond"]) == [0, 1]


def test_tensors_are_copies(model: HookedDiffusion) -> None:
    plain = latents_of(model(**short("sd3", steps=3)))

    def spoil(activation: Tensor, hook: HookContext) -> None:
        for steps in cache.entries.values():
            for value in steps.values():
                value.zero_()

    with model.caching("**.img.hook_*") as cache, model.hooks([("hook_noise_pred", spoil)]):
        spoiled = latents_of(model(**short("sd3", steps=3)))
    assert torch.equal(spoiled, plain)


def test_device_and_dtype_are_chosen(model: HookedDiffusion) -> None:
    wide, half = recorded(model, Z), recorded(model, Z, dtype=torch.float16, device="cpu")
    assert half[Z].dtype == torch.float16 and torch.equal(half[Z], wide[Z].half())
    assert half.nbytes * 2 == wide.nbytes
    assert wide.to("cpu", torch.float16)[Z].dtype == torch.float16
    assert torch.equal(wide.to(torch.float64)[Z], wide[Z].double())
    assert not wide.detach()[Z].requires_grad


class Largest:
    """The largest value so far, a reducer of the user's own."""

    def __init__(self) -> None:
        self.found = torch.tensor(-torch.inf)

    def update(self, value: Tensor, hook: HookContext) -> None:
        self.found = torch.maximum(self.found, value.max())

    def result(self) -> Tensor:
        return self.found


@pytest.mark.parametrize("names", [Z, "blocks.0.attn.hook_pattern", "blocks.0.img.hook_resid_mid"])
def test_reducers_reduce_over_steps(model: HookedDiffusion, names: str) -> None:
    every = recorded(model, names)[names]
    for reduce, expected in (
        ("mean", every.mean(0)),
        ("sum", every.sum(0)),
        ("last", every[-1]),
        (Largest, every.max()),
    ):
        cache = recorded(model, names, reduce=reduce)
        torch.testing.assert_close(cache[names], expected)
        assert cache.steps == []


def test_reducers_average_over_named_axes(model: HookedDiffusion) -> None:
    name = "blocks.0.attn.hook_pattern"
    every = recorded(model, name)[name]
    cache = recorded(model, name, reduce=lambda: RunningMean(over=("head", "query")))
    torch.testing.assert_close(cache[name], every.mean(0).mean((1, 2)))
    one = recorded(model, name, reduce=lambda: RunningMean(over="head"))
    torch.testing.assert_close(one[name], every.mean(0).mean(1))


def test_reducers_see_the_selected_steps_of_each_branch(model: HookedDiffusion) -> None:
    every = recorded(model, Z, branch="all")
    cache = recorded(model, Site(Z, steps=[0, 2]), reduce="sum", branch="all")
    for branch in ("cond", "uncond"):
        expected = every.branch(branch)[Z][[0, 2]].sum(0)
        torch.testing.assert_close(cache.branch(branch)[Z], expected)


def test_half_precision_sums_are_kept_in_single_precision() -> None:
    reducer = RunningMean()
    hook = HookContext(Z, 0, "img", ("batch",), 0, "cond")
    for _ in range(3000):
        reducer.update(torch.ones(1, dtype=torch.float16), hook)
    assert reducer.result().dtype == torch.float32 and reducer.result().item() == 1


@pytest.mark.parametrize("reduce", [None, "mean"])
def test_caches_survive_saving(model: HookedDiffusion, tmp_path: Path, reduce: Any) -> None:
    cache = recorded(model, [Z, "hook_guided_pred"], branch="all", reduce=reduce)
    again = ActivationCache.load(cache.save(tmp_path / "a" / "b"))
    assert again.entries.keys() == cache.entries.keys()
    for key, steps in cache.entries.items():
        assert all(torch.equal(again.entries[key][step], value) for step, value in steps.items())
    assert again.axes == cache.axes and again.steps == cache.steps
    assert again.timesteps == cache.timesteps and again.info == cache.info
    assert again.info["run"].startswith("Run(") and again.info["model"] == model.name
    cache.save(tmp_path / "a" / "b")


def test_files_that_are_no_cache(cache: ActivationCache, tmp_path: Path) -> None:
    folder = cache.save(tmp_path / "cache")
    tensors, index = folder / "activations.safetensors", folder / "index.json"
    whole, text = tensors.read_bytes(), index.read_text()

    def refused(message: str) -> None:
        with pytest.raises(CacheFileError, match=message):
            ActivationCache.load(folder)

    tensors.write_bytes(whole[: len(whole) // 2])
    refused("cannot be read .* it is missing or was cut short")
    tensors.write_bytes(b"no tensors at all")
    refused("cannot be read")
    tensors.unlink()
    refused("cannot be read")
    save_file({"0": torch.zeros(1)}, tensors)
    refused("holds 1 tensors where its index names .*; the two files do not belong together")
    index.write_text(text[: len(text) // 2])
    refused("is .* a folder written by `cache.save`")
    index.write_text(json.dumps({"format": "other"}))
    refused("is no index of an activation cache")
    index.write_text("[]")
    refused("is no index of an activation cache")
    index.write_text(text.replace('"version": 1', '"version": 2'))
    refused("has version 2, this library reads version 1")
    index.write_text(text.replace('"entries"', '"entriess"'))
    refused("has no 'entries'")
    index.unlink()
    refused("cannot be read")
    with pytest.raises(CacheFileError, match="a folder written by"):
        ActivationCache.load(tmp_path / "missing")


def test_caches_are_not_saved_over_other_things(cache: ActivationCache, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CacheFileError, match=r"holds other files \(thesis.tex, …\)"):
        cache.save(tmp_path)
    with pytest.raises(CacheFileError, match="is a file; save into a new folder"):
        cache.save(tmp_path / "thesis.tex")


def test_spooled_caches_hold_the_same_values(model: HookedDiffusion, tmp_path: Path) -> None:
    plain, spooled = recorded(model, Z), recorded(model, Z, spool=tmp_path / "spool")
    assert torch.equal(spooled[Z], plain[Z])
    assert len(list((tmp_path / "spool").glob("*.safetensors"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["**.hook_pattern", "**.hook_z", "**.hook_resid_*", "**.hook_q", "**.mlp.hook_post"], {}),
        ("**.hook_z", {"branch": "all"}),
        ("**.hook_pattern", {"dtype": torch.float16, "steps": [0, 2]}),
        (Site("**.hook_pattern", heads=[0, 2], query="img", key=("txt", [0, 5])), {}),
        (Site("**.hook_z", pos=slice(3, 30, 4)), {"branch": "uncond"}),
        ("**.hook_result", {"reduce": "mean"}),
        (["hook_latents", "**.hook_z"], {"steps": [0, 2], "branch": "all"}),
    ],
    ids=str,
)
def test_the_budget_is_what_is_stored(model: HookedDiffusion, names: Any, options: Any) -> None:
    stored = recorded(model, names, **options).nbytes
    assert recorded(model, names, max_bytes=stored, **options).nbytes == stored
    with pytest.raises(CacheBudgetError):
        recorded(model, names, max_bytes=stored - 1, **options)


def test_a_single_evaluation_is_budgeted_as_one(model: HookedDiffusion) -> None:
    settings = short("sd3", steps=20)
    latents = settings.pop("latents")
    del settings["output_type"]
    with model.caching(Z) as cache:
        model.denoise(latents, step=3, **settings)
    with model.caching(Z, max_bytes=cache.nbytes) as again:
        model.denoise(latents, step=3, **settings)
    assert again.steps == [3] and again.nbytes == cache.nbytes


def test_runs_are_values() -> None:
    run = Run(["a", "b"], seed=[1, 2], num_inference_steps=3)
    assert run == Run(("a", "b"), seed=(1, 2), num_inference_steps=3)
    assert run.with_(seed=4).settings == run.settings and run.with_(prompt="c").prompt == "c"
    assert run.with_(num_inference_steps=5).settings == {"num_inference_steps": 5}
    assert eval(repr(run), {"Run": Run}) == run
    assert run.prompts == ["a", "b"] and run.samples == 2 and Run(None).prompts == []
    embeds = Run(prompt_embeds=torch.zeros(3, 7, 2), num_images_per_prompt=2)
    assert embeds.samples == 6 and embeds.seeds() == [0, 1] * 3
    assert Run("a", seed=torch.tensor(3)).seed == 3


def test_sizes_are_readable() -> None:
    assert [readable_bytes(size) for size in (12, 1200, 3_400_000, 5.87e11, 2e15)] == [
        "12 B",
        "1.2 kB",
        "3.4 MB",
        "587.0 GB",
        "2000.0 TB",
    ]


def test_progress_shows_bytes_and_leaves_the_pipelines_bar(model: HookedDiffusion) -> None:
    before = dict(vars(model.pipe).get("_progress_bar_config", {}))
    model.run_with_cache(names_filter=Z, **short("sd3"))
    assert vars(model.pipe)["_progress_bar_config"] == before


def held_after(model: HookedDiffusion, names: str, steps: int, reduce: Any) -> tuple[int, int]:
    """Live tensor bytes while a streamed cache is open, and at the end."""
    most: list[int] = []

    def watch(_activation: Tensor, hook: HookContext) -> None:
        if hook.step == steps - 1:
            most.append(live_bytes())

    start = live_bytes()
    with (
        model.caching(names, reduce=reduce) as cache,
        model.hooks([(Site("hook_noise_pred", branch="cond"), watch)]),
    ):
        model(**short("sd3", steps=steps))
    end = live_bytes()
    assert cache.keys()
    return most[-1] - start, end - start


def live_bytes() -> int:
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (Tensor, torch.nn.Parameter):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.slow
@pytest.mark.parametrize("reduce", ["mean", "last"])
@pytest.mark.parametrize("names", ["**.hook_pattern", "**.hook_z"])
def test_streamed_reducers_hold_the_same_at_any_number_of_steps(
    model: HookedDiffusion, names: str, reduce: str
) -> None:
    held_after(model, names, 2, reduce)  # whatever is made once
    short_run, long_run = (held_after(model, names, steps, reduce) for steps in (5, 25))
    # The scheduler's own tables are as long as the run: timesteps and sigmas, 4 bytes each.
    tables = 3 * 4 * 20 * 2
    assert abs(long_run[0] - short_run[0]) <= tables
    assert abs(long_run[1] - short_run[1]) <= tables


def test_one_point_is_kept_in_one_part_and_once(model: HookedDiffusion) -> None:
    with pytest.raises(RunError, match=r"blocks.0.attn.img.hook_z is selected in two ways"):
        recorded(model, [Site(Z, heads=[0]), Site(Z, heads=[1])])
    with pytest.raises(RunError, match="is selected in two ways"):
        recorded(model, ["**.hook_z", Site(Z, pos=[0, 1])])
    assert not recorded(model, Z).parts
    plain = recorded(model, Z, branch="all")
    twice = recorded(model, ["**.hook_z", Z], max_bytes=recorded(model, "**.hook_z").nbytes)
    assert torch.equal(twice[Z], plain.cond[Z])
    for reduce in ("sum", "mean"):
        total = recorded(model, ["**.hook_z", Z], reduce=reduce)[Z]
        assert torch.equal(total, recorded(model, Z, reduce=reduce)[Z])
    torch.testing.assert_close(total * 3, plain.cond[Z].sum(0))
    sites = [Site(Z, branch=branch) for branch in ("cond", "uncond")]
    both = recorded(model, sites, max_bytes=plain.nbytes)
    assert both.entries.keys() == plain.entries.keys()
    for branch in ("cond", "uncond"):
        assert torch.equal(both.branch(branch)[Z], plain.branch(branch)[Z])
    steps = recorded(model, [Site(Z, steps=[0, 1]), Site(Z, steps=[1, 2])])
    assert torch.equal(steps[Z], plain.cond[Z])


@pytest.mark.parametrize("reduce", [None, "mean"])
def test_what_cannot_be_foreseen_is_refused_as_it_comes(reduce: Any) -> None:
    flux, sd = HookedDiffusion(shared_pipe("flux")), HookedDiffusion(shared_pipe("sd"))
    settings = short("flux", true_cfg_scale=3.0, negative_prompt="a dog", steps=2)
    for branch in ("uncond", "all"):
        with pytest.raises(CacheBudgetError, match=r"the budget is 1\.0 kB"):
            flux.run_with_cache(
                names_filter=Z, branch=branch, reduce=reduce, max_bytes=1000, **settings
            )
    with pytest.raises(CacheBudgetError, match=r"the budget is 1\.0 kB"):
        sd.run_with_cache(names_filter="resnets.**", reduce=reduce, max_bytes=1000, **short("sd"))
    fits = sd.run_with_cache(names_filter="resnets.**", reduce=reduce, **short("sd", steps=1))[1]
    assert fits.nbytes > 1000


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("entries", lambda entries: [entry[:2] for entry in entries]),
        ("entries", lambda entries: [[*entry[:2], "first"] for entry in entries]),
        ("entries", lambda entries: [["name", {"branch": 1}, 0] for _ in entries]),
        ("entries", lambda entries: [entries[0] for _ in entries]),
        ("entries", lambda _: 3),
        ("axes", lambda _: ["batch"]),
        ("axes", lambda axes: dict.fromkeys(axes, 3)),
        ("times", lambda _: [999.0]),
        ("times", lambda times: dict.fromkeys(times)),
        ("parts", lambda _: {Z: [[2, {"from": 0}]]}),
        ("parts", lambda _: {Z: [[2, 3]]}),
        ("parts", lambda _: {Z: [[2, {"slice": [0, 1, 2, 3]}]]}),
        ("parts", lambda _: {Z: [[2, {"slice": ["a", None, None]}]]}),
        ("parts", lambda _: [1]),
        ("info", lambda _: 3),
    ],
)
def test_an_index_of_another_form_is_no_cache(
    cache: ActivationCache, tmp_path: Path, field: str, change: Any
) -> None:
    folder = cache.save(tmp_path / "cache")
    index = json.loads((folder / "index.json").read_text())
    index[field] = change(index[field])
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CacheFileError, match=r"index of another form|are of two caches"):
        ActivationCache.load(folder)


def test_tensors_under_other_keys_are_no_cache(cache: ActivationCache, tmp_path: Path) -> None:
    folder = cache.save(tmp_path / "cache")
    count = len(json.loads((folder / "index.json").read_text())["entries"])
    save_file(
        {f"tensor {number}": torch.zeros(1) for number in range(count)},
        folder / "activations.safetensors",
    )
    with pytest.raises(CacheFileError, match=r"index of another form|are of two caches"):
        ActivationCache.load(folder)


def test_a_reducer_that_keeps_what_it_is_shown_gets_memory_of_its_own(
    model: HookedDiffusion,
) -> None:
    pattern, places = Site("blocks.0.attn.hook_pattern", key="img"), []

    class KeepAll:
        def __init__(self) -> None:
            self.values: list[Tensor] = []

        def update(self, value: Tensor, hook: HookContext) -> None:
            self.values.append(value)

        def result(self) -> Tensor:
            return torch.stack(self.values)

    class Sum(RunningMean):
        def update(self, value: Tensor, hook: HookContext) -> None:
            places.append(value.data_ptr())
            super().update(value, hook)

    plain = recorded(model, pattern)["blocks.0.attn.hook_pattern"]
    kept = recorded(model, pattern, reduce=KeepAll)["blocks.0.attn.hook_pattern"]
    assert torch.equal(kept, plain) and not torch.equal(kept[0], kept[1])
    mean = recorded(model, pattern, reduce=Sum)["blocks.0.attn.hook_pattern"]
    assert len(set(places)) == 1 and len(places) == 3
    torch.testing.assert_close(mean, plain.mean(0))
