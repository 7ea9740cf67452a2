"""Scores on disk: an interrupted sweep goes on, and nothing but the same whole sweep is taken."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.patching import (
    Outcome,
    PatchingResult,
    WordNoise,
    activation_patching,
    scoreboard,
)
from diffusion_lens.errors import PatchingError
from tests.pipelines import fresh_pipe, shared_pipe, short

CLEAN, CORRUPTED = "a red cat on a table", "a blue dog on a table"
RESIDUAL = "blocks.*.img.hook_resid_post"
SCORES, ABOUT = "scores.safetensors", "sweep.json"


@pytest.fixture
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd3"))


def settings_of(family: str) -> dict[str, Any]:
    fixed = ("latents", "prompt", "output_type")
    return {name: one for name, one in short(family).items() if name not in fixed}


def patched(
    model: HookedDiffusion, clean: Any = CLEAN, corrupted: Any = CORRUPTED, **more: Any
) -> PatchingResult:
    given = {"seeds": (3, 4), "steps": [1], "show_progress": False, "sites": RESIDUAL}
    return activation_patching(model, clean, corrupted, **{**given, **settings_of("sd3"), **more})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep, to be copied."""
    folder = tmp_path_factory.mktemp("kept")
    patched(HookedDiffusion(shared_pipe("sd3")), resume=folder)
    return folder


@dataclasses.dataclass
class Watch:
    """What `watched` does besides scoring: it stops, or looks around."""

    calls: int = 0
    stop: int = -1
    look: Callable[[], None] = lambda: None


WATCH = Watch()


@pytest.fixture(autouse=True)
def _fresh_watch() -> None:
    global WATCH
    WATCH = Watch()


def watched(outcome: Outcome) -> Tensor:
    WATCH.calls += 1
    WATCH.look()
    if WATCH.calls == WATCH.stop:
        raise KeyboardInterrupt
    assert outcome.source is not None
    return -(outcome.value - outcome.source.value).flatten(1).norm(dim=1)


MODES: dict[str, dict[str, Any]] = {
    "teacher-forced": {"steps": [0, 1]},
    "on-trajectory": {},
    "window": {"steps": [0, 1], "axes": ("block", "step")},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_sweep_goes_on(mode: str, model: HookedDiffusion, tmp_path: Path) -> None:
    given = {"metric": watched, "mode": mode, "batch_size": 2, **MODES[mode]}
    whole = patched(model, **given)
    total = WATCH.calls
    WATCH.calls, WATCH.stop = 0, 4
    with pytest.raises(KeyboardInterrupt):
        patched(model, **given, resume=tmp_path)
    WATCH.calls, WATCH.stop = 0, -1
    resumed = patched(model, **given, resume=tmp_path)
    assert torch.equal(resumed.samples, whole.samples)
    assert 0 < WATCH.calls < total
    WATCH.calls = 0
    again = patched(model, **given, resume=str(tmp_path))
    assert WATCH.calls <= 2  # source and base at most
    assert torch.equal(again.samples, whole.samples)
    assert sorted(file.name for file in tmp_path.iterdir()) == [SCORES, ABOUT]


@pytest.mark.slow
def test_scores_are_written_while_the_sweep_runs(
    model: HookedDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a process that is killed, and ends no `with` or `finally`, leaves them."""
    known: list[int] = []

    def look() -> None:
        file = tmp_path / SCORES
        known.append(int(load_file(file)["done"].sum()) if file.exists() else -1)

    WATCH.look = look
    monkeypatch.setattr(scoreboard, "PAUSE", 1e9)
    patched(model, metric=watched, batch_size=2, resume=tmp_path)
    assert set(known) == {-1}
    shutil.rmtree(tmp_path)
    known.clear()
    monkeypatch.setattr(scoreboard, "PAUSE", 0.0)
    patched(model, metric=watched, batch_size=2, resume=tmp_path)
    assert known == sorted(known)
    assert known[-1] > known[0] == -1


# -- another sweep ------------------------------------------------------------------------------

OTHERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "prompt": ("clean.prompt", {}, {"clean": "a red dog on a table"}),
    "seeds": ("seeds", {}, {"seeds": (5, 6)}),
    "steps": ("steps", {}, {"steps": [0]}),
    "a Site's steps": ("sites", {"sites": RESIDUAL}, {"sites": Site(RESIDUAL, steps=1)}),
    "heads": (
        "patches",
        {"sites": Site("blocks.0.attn.img.hook_z", heads=[0])},
        {"sites": Site("blocks.0.attn.img.hook_z", heads=[1])},
    ),
    "words": (
        "patches",
        {"sites": Site("hook_text_emb", pos="red"), "axes": ("point",), "corrupted": CLEAN},
        {"sites": Site("hook_text_emb", pos="cat"), "axes": ("point",), "corrupted": CLEAN},
    ),
    "mode": ("mode", {}, {"mode": "on-trajectory"}),
    "direction": ("direction", {}, {"direction": "noise"}),
    "metric": ("metric", {}, {"metric": lambda outcome: outcome.value.flatten(1).sum(1)}),
    "guidance": ("clean.guidance_scale", {}, {"guidance_scale": 2.0}),
    "a long negative prompt": (
        "clean.negative_prompt",
        {"negative_prompt": "blurry, " * 30 + "cat"},
        {"negative_prompt": "blurry, " * 30 + "dog"},
    ),
    "noise": ("noise", {"corrupted": WordNoise("cat")}, {"corrupted": WordNoise("cat", seed=1)}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first", "second"), OTHERS.values(), ids=OTHERS.keys())
def test_another_sweep_is_refused_by_what_differs(
    name: str,
    first: dict[str, Any],
    second: dict[str, Any],
    model: HookedDiffusion,
    kept: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(kept, folder) if not first else patched(model, **first, resume=folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(PatchingError, match=r"another run left. Different: .*" + name):
        patched(model, **second, resume=folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_other_latents_and_embeddings_of_the_same_shape_are_another_sweep(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    latents = short("sd3")["latents"]
    more = {"seeds": None, "resume": tmp_path}
    patched(model, Run(CLEAN, latents=latents), **more)
    with pytest.raises(PatchingError, match=r"Different: latents \(.* sha256"):
        patched(model, Run(CLEAN, latents=latents + 1), **more)


@pytest.mark.slow
def test_another_model_precision_or_scheduler_is_another_sweep(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    def sweep(change: Callable[[Any], Any], folder: Path) -> PatchingResult:
        pipe = fresh_pipe("sd")
        change(pipe)
        given = {"sites": RESIDUAL, "seeds": 1, "show_progress": False, "resume": folder}
        settings = settings_of("sd")
        return activation_patching(HookedDiffusion(pipe), CLEAN, CORRUPTED, **given, **settings)

    def spaced(pipe: Any) -> None:
        config = pipe.scheduler.config
        pipe.scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing")

    def weighted(pipe: Any) -> None:
        pipe.unet.conv_out.weight.data *= 1.5

    def ddim(pipe: Any) -> None:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    first = sweep(ddim, tmp_path)
    assert torch.equal(sweep(ddim, tmp_path).samples, first.samples)
    cases: dict[str, Callable[[Any], Any]] = {
        "timestep_spacing": spaced,
        "unet.weights": lambda pipe: (ddim(pipe), weighted(pipe)),
        "unet.dtype": lambda pipe: (ddim(pipe), pipe.to(torch.bfloat16)),
    }
    for name, change in cases.items():
        with pytest.raises(PatchingError, match=rf"Different: .*{name}"):
            sweep(change, tmp_path)


# -- damaged files ------------------------------------------------------------------------------


def cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: os.truncate(folder / name, size)


def bit_turned(folder: Path) -> None:
    raw = bytearray((folder / SCORES).read_bytes())
    raw[-20] ^= 0x40
    (folder / SCORES).write_bytes(raw)


def other_tensors(folder: Path) -> None:
    save_file({"a": torch.zeros(2)}, folder / SCORES)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "scores cut": (r"scores\.safetensors cannot be read .* computed anew", cut(SCORES, 100)),
    "scores empty": (r"scores\.safetensors cannot be read", cut(SCORES, 0)),
    "a bit of a score": (r"not those that were written.*Remove it", bit_turned),
    "foreign tensors": (r"scores\.safetensors holds the scores of another sweep", other_tensors),
    "sweep.json cut": (r"sweep\.json cannot be read .* written anew", cut(ABOUT, 200)),
    "sweep.json empty": (r"sweep\.json cannot be read", cut(ABOUT, 0)),
    "sweep.json no text": (
        r"sweep\.json cannot be read",
        lambda folder: (folder / ABOUT).write_bytes(b"\xff\xfe\x00"),
    ),
    "sweep.json something else": (
        "another run left",
        lambda folder: (folder / ABOUT).write_text("[1]"),
    ),
    "sweep.json of an older version": (
        "another run left.*not said there",
        lambda folder: (folder / ABOUT).write_text('{"model": "toy", "seeds": [0]}'),
    ),
    "a folder for a file": (
        r"scores\.safetensors cannot be read",
        lambda folder: ((folder / SCORES).unlink(), (folder / SCORES).mkdir()),
    ),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused_by_its_file(
    message: str,
    damage: Callable[[Path], Any],
    model: HookedDiffusion,
    kept: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(kept, folder)
    damage(folder)
    with pytest.raises(PatchingError, match=message):
        patched(model, resume=folder)


@pytest.mark.slow
def test_scores_of_another_sweep_in_this_ones_folder_are_refused(
    model: HookedDiffusion, kept: Path, tmp_path: Path
) -> None:
    """Their shape is the same, so that nothing else would tell."""
    other, folder = tmp_path / "other", tmp_path / "kept"
    patched(model, "a red dog on a table", resume=other)
    shutil.copytree(kept, folder)
    shutil.copy(other / SCORES, folder / SCORES)
    with pytest.raises(PatchingError, match=r"scores\.safetensors holds the scores of another"):
        patched(model, resume=folder)
    (folder / ABOUT).unlink()  # the page alone does not make them this sweep's
    with pytest.raises(PatchingError, match=r"scores\.safetensors holds the scores of another"):
        patched(model, resume=folder)
    (folder / SCORES).unlink()
    patched(model, resume=folder)


@pytest.mark.slow
def test_a_missing_page_is_written_anew_and_a_missing_file_of_scores_too(
    model: HookedDiffusion, kept: Path, tmp_path: Path
) -> None:
    for lost in (ABOUT, SCORES):
        folder = tmp_path / lost
        whole = patched(model, metric=watched, resume=folder)
        (folder / lost).unlink()
        WATCH.calls = 0
        found = patched(model, metric=watched, resume=folder)
        assert torch.equal(found.samples, whole.samples)
        assert (WATCH.calls == 0) == (lost == ABOUT)
        assert sorted(file.name for file in folder.iterdir()) == [SCORES, ABOUT]


def test_the_page_says_what_was_run(kept: Path) -> None:
    said = json.loads((kept / ABOUT).read_text(encoding="utf-8"))["fingerprint"]
    assert said["clean.prompt"] == json.dumps(CLEAN)
    assert said["mode"] == '"teacher-forced"'


def test_a_file_is_no_folder_and_other_files_are_left_alone(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("precious")
    for place in (file, file / "below"):
        with pytest.raises(PatchingError, match="is a file; give the name of a folder"):
            patched(model, resume=place)
    patched(model, resume=tmp_path)
    assert file.read_text() == "precious"


def test_a_refusal_costs_no_run(model: HookedDiffusion, kept: Path) -> None:
    def never(value: Tensor, hook: Any) -> None:
        raise AssertionError("the model ran")

    with (
        model.hooks([("hook_latents", never)]),
        pytest.raises(PatchingError, match="open hooks"),
    ):
        patched(model, resume=kept)
