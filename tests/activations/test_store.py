"""Reading a store: filters, order, batches; and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.activations import ActivationStore, Rows, collect, online
from diffusion_lens.activations.files import MARK
from diffusion_lens.errors import (
    CacheBudgetError,
    HookNeverFiredError,
    RunError,
    StoreError,
    UnknownHookPointError,
)

PROMPTS = ["a red circle", "a blue square"]
SITES = "blocks.*.img.hook_resid_post"
GIVEN: dict[str, Any] = {"sites": SITES, "num_inference_steps": 3, "tokens": 4, "seeds": 2}


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion.toy("shapes-unet")


@pytest.fixture(scope="module")
def kept(model: HookedDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store")
    collect(model, PROMPTS, out=out, **GIVEN)
    return out


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept, tmp_path / "store")


def everything(store: ActivationStore) -> dict[str, np.ndarray]:
    parts = list(store.parts())
    return {name: np.concatenate([one.index[name] for one in parts]) for name in parts[0].index}


def test_conditions_leave_the_rows_for_which_they_hold(kept: Path) -> None:
    store = ActivationStore.open(kept)
    whole = everything(store)
    assert len(store) == 10 * 4 * 3 * 4 == len(whole["site"])
    cases: list[tuple[dict[str, Any], np.ndarray]] = [
        ({"step": 1}, whole["step"] == 1),
        ({"step": range(1, 3)}, whole["step"] >= 1),
        ({"step": slice(None, 2)}, whole["step"] < 2),
        ({"block": [2, 5]}, np.isin(whole["block"], [2, 5])),
        ({"site": "blocks.3.**"}, whole["block"] == 3),
        ({"prompt": 1, "seed": 0}, (whole["prompt"] == 1) & (whole["seed"] == 0)),
        ({"grid": "4x4"}, whole["grid"] == "4x4"),
        ({"position": slice(8, None)}, whole["position"] >= 8),
    ]
    for given, expected in cases:
        chosen = store.where(**given)
        assert len(chosen) == expected.sum() > 0
        found = everything(chosen)
        for name in found:
            assert np.array_equal(found[name], whole[name][expected]), given
    assert len(store.where(step=1).where(step=2)) == 0
    assert len(store.where(block=None)) == 0


def test_rows_are_those_of_the_files(kept: Path) -> None:
    (file,) = kept.glob("*.safetensors")
    tensors = load_file(file)
    store = ActivationStore.open(kept)
    assert sum(map(len, tensors.values())) == len(store)
    table = pyarrow.parquet.read_table(kept / "shard-000000.parquet").to_pylist()
    for row in table[::37]:
        where = {name: row[name] for name in ("site", "prompt", "seed", "step", "position")}
        (value,) = store.where(**where).rows().values
        assert torch.equal(value, tensors[f"{row['site']} {row['width']}"][row["row"]])


@pytest.mark.parametrize("buffer", [None, 50])
def test_batches_hold_every_row_once(kept: Path, buffer: int | None) -> None:
    store = ActivationStore.open(kept).where(block=[2, 3, 4])
    rows = store.rows().values
    first, again, other = (list(store.batches(32, seed=seed, buffer=buffer)) for seed in (0, 0, 1))
    assert {len(one) for one in first[:-1]} == {32}
    mixed = torch.cat(first)
    assert torch.equal(mixed, torch.cat(again))
    assert not torch.equal(mixed, torch.cat(other))
    assert not torch.equal(mixed, rows)
    assert torch.equal(ordered(mixed), ordered(rows))
    short = list(store.batches(32, drop_last=True))
    assert {len(one) for one in short} == {32}
    assert sum(map(len, short)) == len(rows) // 32 * 32


def ordered(rows: torch.Tensor) -> torch.Tensor:
    return rows[np.lexsort(rows.numpy().T)]


def test_a_loader_gives_every_pass_an_order_of_its_own(kept: Path) -> None:
    store = ActivationStore.open(kept).where(block=[2, 3, 4])
    loader = store.loader(32, seed=5)
    passes = [torch.cat(list(loader)) for _ in range(2)]
    assert not torch.equal(*passes)
    assert torch.equal(ordered(passes[0]), ordered(passes[1]))
    assert torch.equal(ordered(passes[0]), ordered(store.rows().values))
    assert torch.equal(torch.cat(list(store.loader(32, seed=5))), passes[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_share_the_rows(
    model: HookedDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_lens.activations.collecting.FILE_BYTES", 1)
    store = collect(model, PROMPTS, out=tmp_path / "s", **{**GIVEN, "sites": "mid.hook_h"})
    assert len(store.shards) == 4
    loader = store.loader(8, workers=2)
    passes = [torch.cat(list(loader)) for _ in range(2)]
    for one in passes:
        assert torch.equal(ordered(one), ordered(store.rows().values))
    assert not torch.equal(*passes)


def test_online_rows_are_those_of_the_store(model: HookedDiffusion, kept: Path) -> None:
    given = {**GIVEN, "sites": "blocks.[23].img.hook_resid_post"}
    store = ActivationStore.open(kept)
    sites = [f"blocks.{block}.img.hook_resid_post" for block in (2, 3)]
    stream = online(model, PROMPTS, **{**given, "sites": sites})
    rows = torch.cat([part.values for part in stream.parts()])
    assert torch.equal(ordered(rows), ordered(store.where(block=[2, 3]).rows().values))
    first = next(iter(stream.parts()))
    where = {name: first.index[name][0] for name in ("site", "step", "prompt", "seed")}
    assert torch.equal(first.values, store.where(**where).rows().values)
    for batches in (stream.batches(20, seed=1), stream.loader(20, seed=1)):
        assert torch.equal(ordered(torch.cat(list(batches))), ordered(rows))
    with pytest.raises(StoreError, match="workers=2"):
        stream.loader(20, workers=2)
    several = online(model, PROMPTS, **GIVEN)
    with pytest.raises(StoreError, match=r"width 48: .*width 64: .*width 80: "):
        several.batches(20)


def test_unlike_widths_are_refused_with_their_groups(kept: Path) -> None:
    store = ActivationStore.open(kept)
    for ask in (store.rows, lambda: store.batches(8), lambda: store.loader(8)):
        with pytest.raises(StoreError, match=r"width 48: .*; width 64: .*; width 80: .*where"):
            ask()
    with pytest.raises(StoreError, match="no rows: its conditions leave nothing"):
        store.where(step=99).rows()


@pytest.mark.slow
def test_a_site_of_several_widths_is_named(tmp_path: Path) -> None:
    """Keys of joint attention are as many as the text has tokens."""
    from tests.activations.test_collect import settings, shared

    model, site = shared("qwen_image"), "blocks.0.attn.hook_pattern"
    given = {"sites": site, "tokens": 2, **settings("qwen_image")}
    texts = ["a cat", "a red cat on the glass table"]
    store = collect(model, texts, out=tmp_path / "s", **given)
    widths = store.widths()[site]
    assert isinstance(widths, tuple)
    with pytest.raises(StoreError, match=rf"{site}: widths {widths[0]}, {widths[1]}"):
        store.rows()
    assert store.where(prompt=0).rows().values.shape[1] == widths[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 1}, r"column='steps' is none of .* Closest: 'step'"),
        ({"step": "1"}, "this column holds numbers"),
        ({"branch": 3}, "this column holds texts"),
        ({"step": slice(0, 4, 2)}, "two ends and no step"),
        ({"step": slice(-5, None)}, "they do not count from the end"),
        ({"block": slice(None)}, "one of them is given"),
        ({"step": slice("a", 3)}, "numbers from 0 on"),
    ],
)
def test_conditions_that_cannot_hold(kept: Path, given: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        ActivationStore.open(kept).where(**given)


def test_a_site_that_is_not_there(kept: Path) -> None:
    with pytest.raises(UnknownHookPointError, match="this store"):
        ActivationStore.open(kept).where(site="blocks.3.img.hook_resid_pst")


# -- damaged folders ----------------------------------------------------------------------------


def rows_file(folder: Path) -> Path:
    return next(folder.glob("shard-000000-000.safetensors"))


def test_a_file_cut_short_is_refused(folder: Path) -> None:
    data = rows_file(folder).read_bytes()
    rows_file(folder).write_bytes(data[:-8])
    with pytest.raises(StoreError, match=r"has [\d,]+ bytes, its index says .* remove shard"):
        ActivationStore.open(folder)
    rows_file(folder).unlink()
    with pytest.raises(StoreError, match="is missing"):
        ActivationStore.open(folder)


def test_a_changed_file_is_found_by_its_checksum(folder: Path) -> None:
    data = bytearray(rows_file(folder).read_bytes())
    data[-1] ^= 1
    rows_file(folder).write_bytes(data)
    store = ActivationStore.open(folder)
    with pytest.raises(StoreError, match="was changed after it was written"):
        store.check()


@pytest.mark.slow
def test_a_removed_index_is_made_anew(model: HookedDiffusion, folder: Path, kept: Path) -> None:
    (folder / "shard-000000.parquet").unlink()
    with pytest.raises(StoreError, match="not whole: 0 of 1 shard"):
        ActivationStore.open(folder)
    collect(model, PROMPTS, out=folder, **GIVEN)
    assert all((kept / one.name).read_bytes() == one.read_bytes() for one in folder.iterdir())


@pytest.mark.parametrize("name", ["shard-000000.parquet", "store.json"])
def test_an_index_or_page_cut_short_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="cannot be read"):
        ActivationStore.open(folder)


def test_foreign_and_mixed_folders_are_refused(
    model: HookedDiffusion, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        ActivationStore.open(tmp_path)
    other = collect(model, PROMPTS, out=tmp_path / "other", **{**GIVEN, "seeds": [7]})
    for path in other.folder.glob("shard-*"):
        shutil.copy(path, folder)
    with pytest.raises(StoreError, match=r"of another store.*mixed"):
        ActivationStore.open(folder)
    (folder / "shard-000004.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match="mixed from several stores: it has shard 4"):
        ActivationStore.open(folder)
    (folder / "store.json").write_text(json.dumps({"format": "another"}))
    with pytest.raises(StoreError, match="no page of a store"):
        ActivationStore.open(folder)


def test_an_index_that_names_other_rows_is_refused(folder: Path) -> None:
    """Same sizes, other names: nothing is read past the end of a tensor."""
    file = rows_file(folder)
    tensors = load_file(file)
    save_file({f"{name}x": value for name, value in tensors.items()}, file)
    index = folder / "shard-000000.parquet"
    table = pyarrow.parquet.read_table(index)
    said = json.loads(table.schema.metadata[MARK])
    said["files"][file.name]["bytes"] = file.stat().st_size
    table = table.replace_schema_metadata({MARK: json.dumps(said).encode()})
    pyarrow.parquet.write_table(table, index)
    with pytest.raises(StoreError, match="cannot be read"):
        list(ActivationStore.open(folder).parts())


def test_another_collection_in_the_folder_is_refused(model: HookedDiffusion, folder: Path) -> None:
    for changed in ({"tokens": 5}, {"seeds": 3}, {"sites": "mid.hook_h"}, {"batch_size": 2}):
        with pytest.raises(StoreError, match=r"holds what another run left\. Different: "):
            collect(model, PROMPTS, out=folder, **{**GIVEN, **changed})
    weight = next(model.denoiser.parameters())
    with torch.no_grad():
        weight += 1
    try:
        with pytest.raises(StoreError, match=r"Different: unet\.weights"):
            collect(model, PROMPTS, out=folder, **GIVEN)
    finally:
        with torch.no_grad():
            weight -= 1


def test_a_folder_with_other_files_is_refused(model: HookedDiffusion, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds other files \(notes.txt"):
        collect(model, PROMPTS, out=tmp_path, **GIVEN)
    with pytest.raises(StoreError, match="cannot be written to"):
        collect(model, PROMPTS, out=tmp_path / "notes.txt", **GIVEN)


# -- before the first run -----------------------------------------------------------------------


def test_what_it_takes_is_refused_before_anything_runs(
    model: HookedDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = r"480 rows of 10 sites, 4 samples, 3 steps, 12 evaluations"
    with pytest.raises(CacheBudgetError, match=rf"{rows}.*max_bytes= allows 100.0 kB. Narrow"):
        collect(model, PROMPTS, out=tmp_path, max_bytes=100_000, **GIVEN)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheBudgetError, match=rf"{rows}.*has 1.0 kB free"):
        collect(model, PROMPTS, out=tmp_path, **GIVEN)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_bytes_that_are_foreseen_are_those_that_come(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    given = {**GIVEN, "tokens": "all", "latents": True}
    with pytest.raises(CacheBudgetError) as refused:
        collect(model, PROMPTS, out=tmp_path, max_bytes=1, **given)
    store = collect(model, PROMPTS, out=tmp_path, **given)
    told = float(str(refused.value).split("would take ")[1].split(" MB")[0])
    written = sum(path.stat().st_size for path in store.folder.iterdir())
    assert told == pytest.approx(written / 1e6, rel=0.05)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"tokens": "some"}, StoreError, r"tokens='some': give 'all', how many"),
        ({"tokens": 0}, StoreError, "tokens=0"),
        ({"tokens": "grid:8x8"}, StoreError, r"has a grid of 4x4 tokens, .* coarser"),
        ({"sites": "hook_text_emb", "tokens": "grid:2x2"}, StoreError, "needs the image's grid"),
        ({"sites": []}, StoreError, "sites= is empty"),
        ({"sites": "blocks.0.nothing"}, UnknownHookPointError, "no hook point matches"),
        ({"steps": [7]}, StoreError, r"no step of the run, which has 3 \(0 to 2\)"),
        ({"seed": 3}, StoreError, "samples come from seeds="),
        ({"seeds": 0}, StoreError, "seeds=0"),
        ({"seeds": [2**63]}, StoreError, "does not fit into the index"),
        ({"num_images_per_prompt": 2}, StoreError, "samples come from seeds="),
        ({"branch": "other"}, Exception, "names the branch 'other'"),
        ({"shard": (2, 2)}, StoreError, r"shard=\(2, 2\)"),
        ({"images": True, "output_type": "pt"}, StoreError, "leave output_type= out"),
        ({"guidance_scale": 0.0, "branch": "uncond"}, HookNeverFiredError, "never fired"),
        (
            {"sites": [Site(SITES, pos=0), Site(SITES, pos=1)]},
            RunError,
            "selected in two ways",
        ),
    ],
)
def test_what_cannot_be_collected(
    model: HookedDiffusion,
    tmp_path: Path,
    changed: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        collect(model, PROMPTS, out=tmp_path, **{**GIVEN, **changed})
    assert not list(tmp_path.glob("*"))


def test_a_bare_denoiser_is_refused(model: HookedDiffusion, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="wrap the pipeline"):
        collect(HookedDiffusion(model.denoiser), PROMPTS, out=tmp_path, **GIVEN)


def test_without_its_package_it_says_which(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    store = ActivationStore.open(kept).where(block=2)
    with pytest.raises(StoreError, match=r"needs the package datasets.*pip install datasets"):
        store.to_datasets()
    with pytest.raises(StoreError, match="needs the package webdataset"):
        store.to_webdataset(tmp_path)


@pytest.mark.slow
def test_tensors_do_not_add_up_over_prompts(
    model: HookedDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_lens.activations.collecting.FILE_BYTES", 1)
    most: list[int] = []

    def watch(value: Any, hook: Any) -> None:
        if hook.step == 1:
            gc.collect()
            held = (one for one in gc.get_objects() if issubclass(type(one), torch.Tensor))
            storages = {one.untyped_storage().data_ptr(): one.nbytes for one in held}
            most.append(sum(storages.values()))

    watch.read_only = True  # type: ignore[attr-defined]
    texts = [f"a red circle {number}" for number in range(8)]
    with model.hooks([("mid.hook_h", watch)]):
        collect(model, texts, out=tmp_path, sites=SITES, num_inference_steps=2)
    runs = most[-8:]  # the beginning runs one step alone
    assert max(runs[4:]) <= max(runs[:4])


def test_rows_have_a_short_text(kept: Path) -> None:
    store = ActivationStore.open(kept)
    assert repr(store).startswith("ActivationStore(480 rows, 10 sites, 2 prompts; ")
    assert isinstance(store.where(block=2).rows(), Rows)
    with pytest.raises(StoreError, match="holds no images; collect with images=True"):
        store.image(0)
    with pytest.raises(StoreError, match="holds no latents"):
        store.latents(0)
    with pytest.raises(StoreError, match="prompt 5 with seed None is not in this store"):
        store.latents(5)
