"""A training state is one whole: of one step, readable, and of this model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion_lens.errors import TrainingStateError
from diffusion_lens.toys.loading import load
from diffusion_lens.training.config import TrainConfig, load_config
from diffusion_lens.training.loop import Limits, Trainer, train
from diffusion_lens.training.optimizers import new_optimizers
from diffusion_lens.training.setup import new_pipeline, trained_parameters
from diffusion_lens.training.state import PROGRESS_FILE, STATE_FILE, Average, Progress, load_state

UNET = replace(
    load_config("shapes-unet"),
    batch=2,
    phases=(),
    architecture={"channels": (16, 16), "heads": 2, "text_width": 16},
)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(Trainer(UNET, out=folder), limits=Limits(minutes=5, steps=2))
    return folder


@pytest.fixture
def run(two_steps: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_steps, tmp_path / "run")


def as_it_was_written_before(run: Path) -> None:
    """The state with its step alone in the header, and the progress in the file beside it."""
    tensors = load_file(run / STATE_FILE)
    with safe_open(run / STATE_FILE, framework="pt") as state:
        step = state.metadata()["step"]
    save_file(tensors, run / STATE_FILE, metadata={"step": step})


def read(folder: Path, config: TrainConfig = UNET) -> Progress:
    parameters = trained_parameters(new_pipeline(config), config)
    average = Average(parameters, decay=0.9)
    return load_state(folder, average=average, optimizers=new_optimizers(parameters, config))


@pytest.mark.slow
@pytest.mark.parametrize("renames", [0, 1])
def test_a_run_killed_while_it_writes_goes_on_from_one_step(
    renames: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, done, original = Trainer(UNET, out=run), [], Path.replace
    value = next(iter(trainer.parameters))

    def killed(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KilledError
        done.append(self)
        return original(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KilledError):
        train(trainer, limits=Limits(minutes=5, steps=3))
    monkeypatch.undo()
    again = Trainer(UNET, out=run)
    assert again.progress.step == (5 if renames else 2)
    assert again.progress.samples == 2 * again.progress.step
    assert bool((again.parameters[value] == trainer.parameters[value]).all()) == bool(renames)


def test_the_file_for_people_is_not_needed(run: Path) -> None:
    (run / PROGRESS_FILE).write_text("", encoding="utf-8")
    assert read(run).step == 2
    (run / PROGRESS_FILE).unlink()
    assert read(run).step == 2


def test_a_state_as_it_was_written_before_is_read(run: Path) -> None:
    as_it_was_written_before(run)
    progress = read(run)
    assert (progress.step, progress.samples) == (2, 4)
    assert progress.seconds > 0


def test_a_state_that_was_written_before_is_read(run: Path) -> None:
    as_it_was_written_before(run)
    noted = json.loads((run / PROGRESS_FILE).read_text(encoding="utf-8"))
    assert read(run, UNET) == Progress(**noted)


@pytest.mark.parametrize("model", ["shapes-unet", "shapes-mmdit"])
def test_a_run_begins_from_the_shipped_weights(model: str, tmp_path: Path) -> None:
    config = load_config(model)
    trainer = Trainer(config, out=tmp_path, shipped=True)
    shipped = trained_parameters(load(model), config)
    assert trainer.progress == Progress()
    assert trainer.parameters.keys() == shipped.keys()
    for name, value in shipped.items():
        assert torch.equal(trainer.parameters[name], value), name
        assert torch.equal(trainer.average.values[name], value), name


def test_an_older_state_of_another_step_than_its_progress_is_refused(run: Path) -> None:
    as_it_was_written_before(run)
    (run / PROGRESS_FILE).write_text('{"step": 1}', encoding="utf-8")
    with pytest.raises(TrainingStateError, match=r"is of step 2, progress\.json .* of step 1: the"):
        Trainer(UNET, out=run)
    (run / PROGRESS_FILE).write_text('{"step": 2}', encoding="utf-8")
    assert Trainer(UNET, out=run).progress.step == 2  # as the message says


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["", '{"a": 1}', "[]", None], ids=["empty", "keys", "list", "gone"]
)
def test_an_older_state_without_its_progress_is_refused(text: str | None, run: Path) -> None:
    as_it_was_written_before(run)
    if text is None:
        (run / PROGRESS_FILE).unlink()
    else:
        (run / PROGRESS_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(TrainingStateError, match=r"progress\.json cannot be read .* take a copy"):
        Trainer(UNET, out=run)


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_a_state_that_was_cut_is_refused_by_name(length: int, run: Path) -> None:
    whole = (run / STATE_FILE).read_bytes()
    (run / STATE_FILE).write_bytes(whole[:length])
    with pytest.raises(TrainingStateError, match=r"state\.safetensors is damaged"):
        Trainer(UNET, out=run)
