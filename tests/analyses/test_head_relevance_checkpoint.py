"""Checkpoints of head relevance: the same run goes on, every other is refused, nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.head_relevance import HeadRelevance, head_relevance
from diffusion_lens.analyses.saving import RESULT, TENSORS
from diffusion_lens.errors import ArgumentError, ConceptError, ResultError
from diffusion_lens.long_runs.locking import only_process
from tests.pipelines import fresh_pipe, shared_pipe

CONCEPTS = {"Colour": ["red", "blue"], "Shape": ["circle", "square"]}
PROMPTS = ["a red cat", "two dogs", "a glass table"]
SIZE = {"height": 32, "width": 32, "guidance_scale": 7.5}
LONG = "blurry, low quality, jpeg artefacts, watermark, text, cropped, worst quality, ugly, "


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd"))


class Stopped(BaseException):
    pass


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Make the next runs of a model stop after some of them."""
    run = HookedDiffusion.run_with_hooks

    def stop_after(count: int) -> list[int]:
        calls: list[int] = []

        def counted(self: HookedDiffusion, *args: Any, **more: Any) -> Any:
            calls.append(len(calls))
            if len(calls) > count:
                raise Stopped
            return run(self, *args, **more)

        monkeypatch.setattr(HookedDiffusion, "run_with_hooks", counted)
        return calls

    return stop_after


def count(model: HookedDiffusion, folder: Path | None = None, **more: Any) -> HeadRelevance:
    given = {"checkpoint": folder, "checkpoint_every": 1, "show_progress": False}
    given |= {"concepts": CONCEPTS, **SIZE, "num_inference_steps": 1, **more}
    return head_relevance(model, given.pop("prompts", PROMPTS), **given)


def same(one: HeadRelevance, other: HeadRelevance) -> bool:
    tensors = all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("votes", "parts", "vectors")
    )
    return tensors and one.prompts_in_parts == other.prompts_in_parts


@pytest.fixture(scope="module")
def two_of_three(
    model: HookedDiffusion, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """What a run leaves that was ended while it made the third image."""
    folder = tmp_path_factory.mktemp("checkpoint") / "kept"
    run, calls = HookedDiffusion.run_with_hooks, []

    def counted(self: HookedDiffusion, *args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise Stopped
        return run(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HookedDiffusion, "run_with_hooks", counted)
        with pytest.raises(Stopped):
            count(model, folder)
    yield folder


@pytest.fixture
def kept(two_of_three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_of_three, tmp_path / "kept"))


@pytest.mark.slow
def test_a_checkpoint_is_gone_on_from(
    model: HookedDiffusion, kept: Path, stopping: Callable[[int], list[int]]
) -> None:
    assert [path.name for path in kept.iterdir()] == ["prompts-00000002"]
    calls = stopping(1)
    resumed = count(model, kept)
    assert len(calls) == 1  # only the last prompt was left
    stopping(99)
    assert same(resumed, count(model))
    assert "fingerprint" not in resumed.made_by
    assert [path.name for path in kept.iterdir()] == ["prompts-00000003"]
    calls = stopping(0)
    assert same(count(model, kept), resumed)
    assert not calls


def other_scheduler(model: HookedDiffusion) -> HookedDiffusion:
    pipe = fresh_pipe("sd")
    spacing = {"timestep_spacing": "linspace"}
    assert pipe.scheduler.config.timestep_spacing != "linspace"
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **spacing)
    return HookedDiffusion(pipe, name=model.name)


def other_weights(model: HookedDiffusion) -> HookedDiffusion:
    pipe = fresh_pipe("sd")
    with torch.no_grad():
        next(pipe.unet.parameters()).view(-1)[3].add_(1e-3)
    return HookedDiffusion(pipe, name=model.name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vote": "margin"}, r'Different: vote \("argmax" there, "margin" now\)'),
        ({"batch_size": 2}, r"Different: batch_size"),
        ({"steps": [0]}, r"Different: steps"),
        ({"guidance_scale": 9.0}, r"Different: run\.guidance_scale"),
        ({"negative_prompt": [LONG + "cat"]}, r"Different: run\.negative_prompt"),
        ({"negative_prompt_embeds": torch.ones(1, 16, 8)}, r"Different: run\.negative_prompt_emb"),
        ({"prompts": [*PROMPTS[:2], "a dog"]}, r"Different: run\.prompt"),
        ({"seed": 5}, r"Different: run\.seed .*words_seed"),
        ({"concepts": dict(reversed(CONCEPTS.items()))}, r"Different: words"),
    ],
    ids=str,
)
def test_checkpoints_of_other_runs_are_refused(
    changed: dict[str, Any], message: str, model: HookedDiffusion, kept: Path
) -> None:
    with pytest.raises(ResultError, match=rf"prompts-00000002 holds .* another run.* {message}"):
        count(model, kept, **changed)
    assert (kept / "prompts-00000002" / TENSORS).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [(other_scheduler, r"scheduler\.timestep_spacing"), (other_weights, r"unet\.weights")],
)
def test_checkpoints_of_other_models_are_refused(
    change: Callable[[HookedDiffusion], HookedDiffusion],
    message: str,
    model: HookedDiffusion,
    kept: Path,
) -> None:
    with pytest.raises(ResultError, match=rf"Different: .*{message}"):
        count(change(model), kept)


def test_two_long_texts_that_differ_late_are_two_runs(
    model: HookedDiffusion, tmp_path: Path, stopping: Callable[[int], list[int]]
) -> None:
    stopping(1)
    with pytest.raises(Stopped):
        count(model, tmp_path, negative_prompt=[LONG + "cat"])
    with pytest.raises(ResultError, match=r"run\.negative_prompt \(….*cat.* there, ….*dog.* now\)"):
        count(model, tmp_path, negative_prompt=[LONG + "dog"])


def foreign(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
        if "mine" in str(path.relative_to(folder))
    }


def test_what_others_put_there_stays(model: HookedDiffusion, kept: Path) -> None:
    thesis = kept / "prompts-of-last-year-mine"
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("precious")
    (kept / "prompts-9").mkdir()
    (kept / "prompts-9" / "mine.txt").write_text("precious")
    (kept / "prompts-mine").write_text("precious")
    (kept / "prompts-link-to-mine").symlink_to(thesis)
    (kept / "prompts-00000002" / "notes-mine.txt").write_text("precious")
    before = foreign(kept)
    count(model, kept)
    assert foreign(kept) == before and len(before) >= 6
    assert (kept / "prompts-00000003" / RESULT).exists()
    assert not (kept / "prompts-00000002" / RESULT).exists()


@pytest.mark.parametrize("kind", ["file", "link", "partial"])
def test_what_stands_in_the_way_is_refused_before_anything_runs(
    kind: str, model: HookedDiffusion, tmp_path: Path, stopping: Callable[[int], list[int]]
) -> None:
    folder, mine = tmp_path / "kept", tmp_path / "mine"
    folder.mkdir()
    mine.mkdir()
    if kind == "file":
        (folder / "prompts-00000001").write_text("precious")
    elif kind == "link":
        (folder / "prompts-00000001").symlink_to(mine)
    else:
        (folder / "prompts.partial").mkdir()
        (folder / "prompts.partial" / "thesis.txt").write_text("precious")
    calls = stopping(0)
    with pytest.raises(ResultError, match=r"is no checkpoint of this run, but .* move it"):
        count(model, folder)
    assert not calls
    assert len(list(folder.iterdir())) == 1


def test_an_empty_folder_of_the_name_of_a_checkpoint_is_none(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    (tmp_path / "prompts-00000002").mkdir()
    with pytest.raises(ResultError, match=r"no result\.json.* To begin anew, remove .*00000002"):
        count(model, tmp_path)


def test_what_a_killed_run_left_half_written_or_half_removed_is_cleared(
    model: HookedDiffusion, kept: Path
) -> None:
    last = kept / "prompts-00000002"
    earlier = kept / "prompts-00000001"
    shutil.copytree(last, earlier)
    (earlier / TENSORS).unlink()
    (kept / "prompts-00000000").mkdir()
    partial = kept / "prompts.partial"
    partial.mkdir()
    (partial / ".tensors.17.partial.safetensors").write_bytes(b"half")
    (partial / TENSORS).write_bytes(b"whole")
    count(model, kept)
    assert [path.name for path in kept.iterdir()] == ["prompts-00000003"]


def test_an_earlier_checkpoint_of_another_run_is_left_alone(
    model: HookedDiffusion, kept: Path
) -> None:
    other = kept / "prompts-00000001"
    shutil.copytree(kept / "prompts-00000002", other)
    about = json.loads((other / RESULT).read_text())
    about["fields"]["made_by"] = {"dict": [["fingerprint", {"dict": [["vote", "other"]]}]]}
    (other / RESULT).write_text(json.dumps(about))
    count(model, kept)
    assert (other / TENSORS).exists()


def edited(name: str, value: Any) -> Callable[[Path], None]:
    def edit(last: Path) -> None:
        about = json.loads((last / RESULT).read_text())
        about["fields"][name] = value
        (last / RESULT).write_text(json.dumps(about))

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda last: os.truncate(last / TENSORS, 40), "do not belong together"),
        (lambda last: (last / TENSORS).unlink(), r"tensors\.safetensors cannot be read"),
        (lambda last: os.truncate(last / RESULT, 40), r"result\.json cannot be read"),
        (lambda last: (last / RESULT).unlink(), r"there is no result\.json"),
        (edited("prompts", 3), "holds counts of 2 prompts, not what it says"),
        (lambda last: last.rename(last.with_name("prompts-00000004")), "not what it says"),
    ],
)
def test_damaged_checkpoints_say_which_and_what_to_do(
    change: Callable[[Path], None], message: str, model: HookedDiffusion, kept: Path
) -> None:
    change(kept / "prompts-00000002")
    with pytest.raises(ResultError, match=rf"{message}.* To begin anew, remove .*prompts-0000000"):
        count(model, kept)


def test_two_runs_do_not_share_a_folder(model: HookedDiffusion, kept: Path) -> None:
    with (
        only_process(kept / ".head_relevance.lock", argument="checkpoint"),
        pytest.raises(ResultError, match="in use by another run"),
    ):
        count(model, kept)
    count(model, kept)
    assert [path.name for path in kept.iterdir()] == ["prompts-00000003"]


def test_a_checkpoint_is_kept_in_a_folder(model: HookedDiffusion, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResultError, match=r"checkpoint=.* cannot be made .* give a folder"):
            count(model, folder)


def test_a_checkpoint_that_cannot_be_written_says_what_is_kept(
    model: HookedDiffusion, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusion_lens.analyses.saving.save_file", full)
    with pytest.raises(
        ResultError, match=r"cannot be written .*No space.* first 2 prompts is kept"
    ):
        count(model, kept)
    assert (kept / "prompts-00000002" / TENSORS).exists()


def test_noise_that_cannot_be_drawn_again_is_refused(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ConceptError, match=r"single generator=.* give seed="):
        count(model, tmp_path, generator=generator)
    message = r"^head_relevance\(checkpoint_every=…\) takes int from 1 .*, got 0 \(int\)"
    with pytest.raises(ArgumentError, match=message):
        count(model, tmp_path, checkpoint_every=0)


@pytest.mark.slow
def test_generators_and_negative_prompts_go_with_their_prompts(model: HookedDiffusion) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    assert same(count(model, generator=generators), count(model))
    negative = ["a red cat", "", "a square"]
    # One word for each concept, so that none is drawn; two steps, since the first is all noise.
    given = {"concepts": {"Colour": ["red"], "Shape": ["circle"]}, "vote": "strength"}
    given["num_inference_steps"] = 2
    apart = [
        votes(count(model, prompts=prompt, negative_prompt=text, seed=at, **given))
        for at, (prompt, text) in enumerate(zip(PROMPTS, negative, strict=True))
    ]
    found = votes(count(model, negative_prompt=negative, batch_size=2, **given))
    torch.testing.assert_close(found, sum(apart), atol=1e-4, rtol=1e-4)
    assert (votes(count(model, negative_prompt="", **given)) - found).abs().max() > 1e-3
    with pytest.raises(ConceptError, match=r"negative_prompt= has 2 rows for 3 prompts"):
        count(model, negative_prompt=["x", "y"])


def votes(result: HeadRelevance) -> torch.Tensor:
    assert result.votes is not None
    return result.votes


def test_every_image_of_a_prompt_has_the_seed_it_was_given(
    model: HookedDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[Any] = []
    run = HookedDiffusion.run_with_hooks

    def seen(self: HookedDiffusion, given: Run, **more: Any) -> Any:
        seeds.append(given.seed)
        return run(self, given, **more)

    monkeypatch.setattr(HookedDiffusion, "run_with_hooks", seen)
    count(model, prompts=Run(PROMPTS, seed=range(6), num_images_per_prompt=2), batch_size=2)
    assert seeds == [(0, 1, 2, 3), (4, 5)]
