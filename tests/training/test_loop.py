import json
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from diffusion_lens.toys.loading import CARD, checksums
from diffusion_lens.training import __main__ as command
from diffusion_lens.training import export as export_module
from diffusion_lens.training.config import Phase, load_config
from diffusion_lens.training.export import export
from diffusion_lens.training.loop import Limits, Trainer, learning_rate, train
from diffusion_lens.training.optimizers import new_optimizers
from diffusion_lens.training.samples import GradedSamples
from diffusion_lens.training.setup import new_pipeline, trained_parameters
from diffusion_lens.training.state import STATE_FILE, Average, Progress, load_state, save_state

# bf16 autocast leaves the weights of an RMS norm in float32, which torch remarks on
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

UNET = replace(
    load_config("shapes-unet"),
    batch=4,
    phases=(),
    architecture={"channels": (16, 16), "heads": 2, "text_width": 16},
)
MMDIT = replace(
    load_config("shapes-mmdit"),
    batch=4,
    phases=(Phase(until=1, settings={"coarse": True}),),
    architecture={
        "double_blocks": 1, "single_blocks": 1, "heads": 1, "text_width": 16, "pooled_width": 16,
    },
)  # fmt: skip


def _three(config):
    parameters = trained_parameters(new_pipeline(config), config)
    return parameters, new_optimizers(parameters, config), Average(parameters, decay=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("config", [UNET, MMDIT], ids=["unet", "mmdit"])
def test_a_run_goes_on_where_it_stopped(config, tmp_path):
    first = train(Trainer(config, out=tmp_path), limits=Limits(minutes=5, steps=2))
    assert (first.step, first.samples) == (2, 8)
    before = load_file(tmp_path / STATE_FILE)
    second = train(Trainer(config, out=tmp_path), limits=Limits(minutes=5, steps=1))
    assert second.step == 3 and second.seconds > first.seconds
    after = load_file(tmp_path / STATE_FILE)
    assert before.keys() == after.keys()
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert len(moved) > len(after) / 2


@pytest.mark.slow
def test_a_run_begins_from_another_runs_state(tmp_path):
    train(Trainer(UNET, out=tmp_path / "a"), limits=Limits(minutes=5, steps=2))
    branch = Limits(minutes=5, steps=1, decay_steps=1)
    assert train(Trainer(UNET, out=tmp_path / "b", resume=tmp_path / "a"), limits=branch).step == 3
    assert json.loads((tmp_path / "a" / "progress.json").read_text())["step"] == 2


def test_a_folder_without_a_state_or_with_another_models_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere has no state\.safetensors"):
        Trainer(UNET, out=tmp_path / "a", resume=tmp_path / "nowhere")
    train(Trainer(MMDIT, out=tmp_path), limits=Limits(minutes=5, steps=1))
    with pytest.raises(ValueError, match="holds the state of another model than shapes-unet"):
        Trainer(UNET, out=tmp_path)


@pytest.mark.parametrize("config", [UNET, MMDIT], ids=["adamw", "muon"])
def test_a_state_survives_writing_and_reading(config, tmp_path):
    parameters, optimizers, average = _three(config)
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    average.update(1)
    progress = Progress(step=1, samples=4, seconds=0.5)
    save_state(tmp_path, average=average, optimizers=optimizers, progress=progress)
    others, other_optimizers, other_average = _three(config)
    assert load_state(tmp_path, average=other_average, optimizers=other_optimizers) == progress
    for name, value in parameters.items():
        assert torch.equal(others[name], value)
        torch.testing.assert_close(
            other_average.values[name], average.values[name], atol=1e-3, rtol=1e-2
        )
    assert len(optimizers) == len(other_optimizers) == (1 if config is UNET else 2)
    for kept, read in zip(optimizers, other_optimizers, strict=True):
        keys = [{k: v.shape for k, v in s.items() if k != "step"} for s in kept.state.values()]
        again = [{k: v.shape for k, v in s.items() if k != "step"} for s in read.state.values()]
        assert sorted(map(str, keys)) == sorted(map(str, again))


def test_swapping_the_average_twice_changes_nothing():
    parameters, _, average = _three(UNET)
    name, value = next(iter(parameters.items()))
    average.values[name] += 1
    trained, averaged = value.detach().clone(), average.values[name].clone()
    average.swap()
    assert torch.equal(value, averaged)
    average.swap()
    assert torch.equal(value, trained) and torch.equal(average.values[name], averaged)


def test_samples_are_drawn_with_the_average_and_graded(tmp_path):
    config = replace(UNET, sample_steps=2)
    seen = []
    graded = GradedSamples(config, out=tmp_path, count=4)

    def on_pause(pipe, progress):
        seen.append(next(pipe.unet.parameters()).detach().clone())
        graded(pipe, progress)

    train(Trainer(config, out=tmp_path), limits=Limits(minutes=5, steps=2), on_pause=on_pause)
    assert len(seen) == 1
    state = load_file(tmp_path / STATE_FILE)
    name = "unet.conv_in.weight"
    torch.testing.assert_close(
        seen[0], state[f"value.{name}"] + state[f"average.{name}"].float(), atol=1e-5, rtol=1e-3
    )
    assert (tmp_path / "samples.png").exists()
    assert (tmp_path / "grades.csv").read_text().startswith("8,")


def test_export_writes_the_average_and_its_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "load_config", lambda _: MMDIT)
    train(Trainer(MMDIT, out=tmp_path / "run"), limits=Limits(minutes=5, steps=1))
    export("shapes-mmdit", state=tmp_path / "run", out=tmp_path / "model")
    facts = json.loads((tmp_path / "model" / CARD).read_text())
    assert facts["step"] == 1 and facts["sha256"] == checksums(tmp_path / "model")
    weights = load_file(tmp_path / "model/transformer/diffusion_pytorch_model.safetensors")
    state, name = load_file(tmp_path / "run" / STATE_FILE), "transformer.x_embedder.weight"
    average = state[f"value.{name}"] + state[f"average.{name}"].float()
    torch.testing.assert_close(weights["x_embedder.weight"].float(), average, atol=1e-3, rtol=1e-2)


def test_a_unet_is_not_exported_without_its_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "load_config", lambda _: UNET)
    train(Trainer(UNET, out=tmp_path), limits=Limits(minutes=5, steps=1))
    with pytest.raises(ValueError, match="a UNet needs its decoder: give --codec"):
        export("shapes-unet", state=tmp_path, out=tmp_path / "model")


def test_the_rate_rises_stays_and_falls_only_when_asked():
    config = replace(UNET, learning_rate=1.0, warm_up=10)
    steady, ending = (Limits(minutes=1, steps=20, decay_steps=d) for d in (0, 10))
    rates = [learning_rate(config, steady, step=step, first=0) for step in range(20)]
    assert rates[:2] == [0.1, 0.2] and rates[9:] == [1.0] * 11
    falling = [learning_rate(config, ending, step=step, first=100) for step in range(100, 120)]
    assert falling[:11] == [1.0] * 11 and falling[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_keeps_its_state(number, tmp_path):
    trainer = Trainer(UNET, out=tmp_path)
    take, sent = trainer.step, []
    before = signal.getsignal(number)

    def step(rate):
        sent.append(signal.raise_signal(number))
        return take(rate)

    trainer.step = step
    assert train(trainer, limits=Limits(minutes=5, steps=50)).step == len(sent) == 1
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 1
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_a_run_at_once(tmp_path):
    trainer = Trainer(UNET, out=tmp_path)
    kinds = (signal.SIGTERM, signal.SIGINT)
    take, before = trainer.step, [signal.getsignal(kind) for kind in kinds]

    def step(rate):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return take(rate)

    trainer.step = step
    with pytest.raises(KeyboardInterrupt):
        train(trainer, limits=Limits(minutes=5, steps=50))
    assert [signal.getsignal(kind) for kind in kinds] == before


def test_a_signal_while_the_state_is_written_does_not_lose_it(tmp_path):
    trainer = Trainer(UNET, out=tmp_path)
    save = trainer.save

    def interrupted():
        signal.raise_signal(signal.SIGTERM)
        save()

    trainer.save = interrupted
    train(trainer, limits=Limits(minutes=5, steps=1))
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "holds step 1; the recipe is done"),
        (["--steps", "1"], "holds step 1; the same command goes on from there"),
    ],
)
def test_the_command_says_where_it_stopped(asked, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_config", lambda _: replace(UNET, steps=1, decay_steps=0))
    given = ["train", "--model", "shapes-unet", "--out", str(tmp_path), "--samples", "0", *asked]
    monkeypatch.setattr(sys, "argv", given)
    command.main()
    assert f"{tmp_path} {said}" in capsys.readouterr().out


def test_each_phase_trains_with_its_own_settings(tmp_path):
    phases = (Phase(until=2, settings={"batch": 2, "learning_rate": 1e-5, "ema": 0.5}),)
    config = replace(UNET, phases=phases, warm_up=1)
    trainer = Trainer(config, out=tmp_path)
    decays = []
    for _ in range(3):
        trainer.step(1e-4)
        decays.append(trainer.average.decay)
    assert trainer.progress.samples == 2 + 2 + 4
    assert decays == [0.5, 0.5, config.ema]
    limits = Limits(minutes=5, steps=10)
    rates = [learning_rate(config, limits, step=step, first=0) for step in (1, 2)]
    assert rates == [1e-5, config.learning_rate]
