"""The training loop: steps, the moving average, a log, states that a run can go on from."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_lens.training.batches import Batch, batches
from diffusion_lens.training.config import TrainConfig
from diffusion_lens.training.objectives import mmdit_loss, unet_loss
from diffusion_lens.training.optimizers import new_optimizers
from diffusion_lens.training.setup import (
    attention_mode,
    new_pipeline,
    prepare,
    put_shipped_weights,
    trained_parameters,
)
from diffusion_lens.training.state import (
    STATE_FILE,
    Average,
    Progress,
    load_state,
    refuse_other_model,
    save_state,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LOG_EVERY = 100
"""Steps between two lines of the log."""

LONGEST_STEP = 10.0
"""Seconds that one step can count for: compiling is no training, and a stopped process is not."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run stops, and whether its learning rate falls on the way.

    Args:
        minutes: Training time of this run.
        steps: Steps of this run.
        decay_steps: The learning rate falls to zero over this many last steps of the run, for an
            export; 0 keeps it constant, so that the run can go on.
    """

    minutes: float
    steps: int
    decay_steps: int = 0


class Trainer:
    """One run: what is trained, and how far it has come.

    Args:
        config: The recipe.
        out: Folder of the run: its state and its log. A state that lies there is gone on from.
        device: Where to train; bf16 autocast on each.
        resume: A state to begin from where `out` has none.
        shipped: Begin from the weights that ship, with fresh moments, where there is no state.
        compiled: Whether to compile the denoiser.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        out: Path,
        device: str = "cpu",
        resume: Path | None = None,
        shipped: bool = False,
        compiled: bool = False,
    ) -> None:
        """Build the pipeline and read the state, if there is one."""
        self.config, self.out, self.device = config, out, device
        source = out if (out / STATE_FILE).exists() else resume
        self.pipe: Any = new_pipeline(config).to(device)
        if shipped and source is None:
            put_shipped_weights(self.pipe, config)
        self.parameters = trained_parameters(self.pipe, config)
        self.optimizers = new_optimizers(self.parameters, config)
        self.average = Average(self.parameters, decay=config.ema)
        self.progress = Progress()
        if source is not None:
            refuse_other_model(source, model=config.model, trained=self.parameters)
            self.progress = load_state(source, average=self.average, optimizers=self.optimizers)
        prepare(self.pipe, config, compiled=compiled)
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed + self.progress.step)
        self._enter(config.at(self.progress.step))

    def _enter(self, phase: TrainConfig) -> None:
        """Go on with the settings of a phase."""
        self.phase = phase
        self.average.decay = phase.ema
        self.stream = batches(phase, start=self.progress.step)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of the family at the present step.

        Args:
            batch: Samples on the device.

        Returns:
            One number.
        """
        phase = self.phase
        with attention_mode(self.pipe, phase):
            if phase.family == "unet":
                return unet_loss(self.pipe, batch, noise_power=phase.noise_power)
            return mmdit_loss(
                self.pipe,
                batch,
                pooled_drop=phase.pooled_drop,
                coarse=phase.coarse,
                noise_mean=phase.noise_mean,
            )

    def step(self, rate: float) -> Tensor:
        """One optimizer step.

        Args:
            rate: The learning rate.

        Returns:
            The loss, detached.
        """
        began = time.perf_counter()
        phase = self.config.at(self.progress.step)
        if phase != self.phase:
            self._enter(phase)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        drawn = next(self.stream)
        loss = self.loss(Batch(*(value.to(self.device) for value in vars(drawn).values())))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.samples += self.phase.batch
        self.average.update(self.progress.step)
        self.progress.seconds += min(time.perf_counter() - began, LONGEST_STEP)
        return loss.detach()

    def save(self) -> None:
        """Write the state into the run's folder."""
        save_state(
            self.out, average=self.average, optimizers=self.optimizers, progress=self.progress
        )

    def show(self, look: Callable[["DiffusionPipeline", Progress], None]) -> None:
        """Call something with the averaged weights in place.

        Args:
            look: Gets the pipeline and the progress.
        """
        self.average.swap()
        with torch.compiler.set_stance("force_eager"):
            look(self.pipe, self.progress)
        self.average.swap()


def learning_rate(config: TrainConfig, limits: Limits, *, step: int, first: int) -> float:
    """The learning rate of one step: rising at first, constant, falling if the run is to end.

    Args:
        config: The recipe.
        limits: When the run stops and over how many steps it decays.
        step: Steps taken in all.
        first: Steps that had been taken when the run began.

    Returns:
        The rate.
    """
    rate = config.at(step).learning_rate * min(1.0, (step + 1) / config.warm_up)
    if limits.decay_steps:
        rate *= min(1.0, (first + limits.steps - step) / limits.decay_steps)
    return rate


@contextlib.contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """Signals to end so far (SIGTERM, Ctrl-C); a second Ctrl-C interrupts at once, as usual."""
    told: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and number in told:
            raise KeyboardInterrupt
        told.append(number)

    try:
        for number in before:
            signal.signal(number, note)
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def train(
    trainer: Trainer,
    *,
    limits: Limits,
    on_pause: Callable[["DiffusionPipeline", Progress], None] | None = None,
    pause_minutes: float = 5.0,
) -> Progress:
    """Train until a limit is reached or the process is told to end (SIGTERM or Ctrl-C).

    To be called in the main thread, which alone hears signals.

    Args:
        trainer: The run.
        limits: When to stop.
        on_pause: Called with the averaged weights in place after each state that is written.
        pause_minutes: Training time between two states.

    Returns:
        How far the model has come in all.
    """
    progress, first, began = trainer.progress, trainer.progress.step, trainer.progress.seconds
    paused, losses = began, []
    bar = tqdm(
        total=first + limits.steps, initial=first, desc=trainer.config.model, mininterval=5.0
    )
    with (trainer.out / "log.csv").open("a", encoding="utf-8") as log, bar, _told_to_end() as told:
        while not told and progress.step < first + limits.steps:
            rate = learning_rate(trainer.config, limits, step=progress.step, first=first)
            losses.append(trainer.step(rate))
            bar.update()
            if progress.step % LOG_EVERY == 0:
                mean = torch.stack(losses).mean().item()
                losses.clear()
                log.write(f"{progress.step},{progress.samples},{progress.seconds:.0f},{mean:.5f}\n")
                log.flush()
                bar.set_postfix(loss=f"{mean:.4f}")
            if progress.seconds - began > 60 * limits.minutes:
                break
            if progress.seconds - paused > 60 * pause_minutes:
                paused = progress.seconds
                trainer.save()
                if on_pause is not None:
                    trainer.show(on_pause)
        trainer.save()
    if on_pause is not None:
        trainer.show(on_pause)
    return progress
