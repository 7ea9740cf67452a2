"""The training loop: a pipeline, its trained components, AdamW, an average, a log."""

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_lens.toys.pipelines import mmdit_pipeline, unet_pipeline
from diffusion_lens.toys.train.attention import PlainAttention
from diffusion_lens.toys.train.batches import Batch, batches
from diffusion_lens.toys.train.config import TrainConfig
from diffusion_lens.toys.train.objectives import mmdit_loss, unet_loss
from diffusion_lens.toys.train.optimizers import new_optimizers
from diffusion_lens.toys.train.state import STATE_FILE, Average, Progress, load_state, save_state

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TRAINED = {
    "unet": ("unet", "text_encoder"),
    "mmdit": ("transformer", "text_encoder", "text_encoder_2"),
}
"""The components of each family that are trained; the codec is not."""


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


def new_pipeline(config: TrainConfig) -> "DiffusionPipeline":
    """The pipeline of a recipe with fresh weights, drawn from its seed.

    Args:
        config: The recipe.

    Returns:
        The pipeline on the CPU.
    """
    torch.manual_seed(config.seed)
    arguments: dict[str, Any] = dict(config.architecture)
    pipe = unet_pipeline(**arguments) if config.family == "unet" else mmdit_pipeline(**arguments)
    for name in TRAINED[config.family]:
        getattr(pipe, name).train()
    if config.family == "unet":
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe


def trained_parameters(pipe: "DiffusionPipeline", config: TrainConfig) -> dict[str, Tensor]:
    """Every trained parameter of a pipeline.

    Args:
        pipe: The pipeline.
        config: Its recipe.

    Returns:
        "component.parameter" to parameter.
    """
    return {
        f"{component}.{name}": parameter
        for component in TRAINED[config.family]
        for name, parameter in getattr(pipe, component).named_parameters()
    }


def prepare(pipe: "DiffusionPipeline", config: TrainConfig, *, compiled: bool) -> None:
    """Set a pipeline up for speed: plain attention in a UNet on a CPU, a compiled denoiser.

    Args:
        pipe: The pipeline, on its device; changed in place.
        config: Its recipe.
        compiled: Whether to compile the denoiser: minutes once, then about 1.4 times the speed.
    """
    from diffusers.models.attention_processor import AttnProcessor

    denoiser = pipe.components[TRAINED[config.family][0]]
    if config.family == "unet" and pipe.device.type == "cpu":
        denoiser.set_attn_processor(AttnProcessor())
    if compiled:
        denoiser.compile(dynamic=False)


def attention_mode(
    pipe: "DiffusionPipeline", config: TrainConfig
) -> contextlib.AbstractContextManager:
    """The context in which a family's loss is fastest on its device.

    Args:
        pipe: The pipeline, on its device.
        config: Its recipe.

    Returns:
        Plain attention for an MM-DiT on a CPU, else nothing.
    """
    plain = pipe.device.type == "cpu" and config.family == "mmdit"
    return PlainAttention() if plain else contextlib.nullcontext()


def _loss(pipe: Any, config: TrainConfig, batch: Batch, step: int) -> Tensor:
    if config.family == "unet":
        return unet_loss(pipe, batch, noise_power=config.noise_power)
    coarse = step < config.coarse_steps
    return mmdit_loss(pipe, batch, pooled_drop=config.pooled_drop, coarse=coarse)


def _learning_rate(config: TrainConfig, progress: Progress, first: int, limits: Limits) -> float:
    rate = config.learning_rate * min(1.0, (progress.step + 1) / config.warm_up)
    if limits.decay_steps:
        rate *= min(1.0, (first + limits.steps - progress.step) / limits.decay_steps)
    return rate


def train(
    config: TrainConfig,
    *,
    out: Path,
    limits: Limits,
    device: str = "cpu",
    resume: Path | None = None,
    on_pause: Callable[["DiffusionPipeline", Progress], None] | None = None,
    pause_minutes: float = 5.0,
    compiled: bool = False,
) -> Progress:
    """Train a model until a limit is reached or the process is told to end.

    Args:
        config: The recipe.
        out: Folder of the run: its state and its log. A state that lies there is gone on from.
        limits: When to stop.
        device: Where to train; bf16 autocast on each.
        resume: A state to begin from where `out` has none.
        on_pause: Called with the averaged weights in place, every `pause_minutes` and at the end.
        pause_minutes: Training time between two states.
        compiled: Whether to compile the denoiser.

    Returns:
        How far the model has come in all.
    """
    pipe = new_pipeline(config).to(device)
    parameters = trained_parameters(pipe, config)
    optimizers = new_optimizers(parameters, config)
    average = Average(parameters, decay=config.ema)
    source = out if (out / STATE_FILE).exists() else resume
    progress = (
        Progress() if source is None else load_state(source, average=average, optimizers=optimizers)
    )
    prepare(pipe, config, compiled=compiled)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed + progress.step)
    stop = False

    def ask_to_stop(*_: object) -> None:
        nonlocal stop
        stop = True

    previous = signal.signal(signal.SIGTERM, ask_to_stop)
    first, elapsed, since_pause, losses = progress.step, 0.0, 0.0, []
    stream = batches(config, start=first)
    bar = tqdm(total=limits.steps, desc=config.model, mininterval=5.0)
    with (out / "log.csv").open("a", encoding="utf-8") as log:
        while not stop and progress.step < first + limits.steps and elapsed < 60 * limits.minutes:
            began = time.perf_counter()
            rate = _learning_rate(config, progress, first, limits)
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = rate
            drawn = next(stream)
            batch = Batch(*(value.to(device) for value in vars(drawn).values()))
            with attention_mode(pipe, config):
                loss = _loss(pipe, config, batch, progress.step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.samples += config.batch
            average.update(progress.step)
            losses.append(loss.detach())
            spent = min(time.perf_counter() - began, 10.0)  # a stopped process did not train
            elapsed, since_pause = elapsed + spent, since_pause + spent
            progress.seconds += spent
            bar.update()
            if progress.step % 100 == 0:
                mean = torch.stack(losses).mean().item()
                losses.clear()
                log.write(f"{progress.step},{progress.samples},{progress.seconds:.0f},{mean:.5f}\n")
                log.flush()
                bar.set_postfix(loss=f"{mean:.4f}")
            if since_pause > 60 * pause_minutes:
                since_pause = 0.0
                save_state(out, average=average, optimizers=optimizers, progress=progress)
                _pause(pipe, average, progress, on_pause)
    bar.close()
    signal.signal(signal.SIGTERM, previous)
    save_state(out, average=average, optimizers=optimizers, progress=progress)
    _pause(pipe, average, progress, on_pause)
    return progress


def _pause(
    pipe: "DiffusionPipeline",
    average: Average,
    progress: Progress,
    on_pause: Callable[["DiffusionPipeline", Progress], None] | None,
) -> None:
    if on_pause is not None:
        average.swap()
        with torch.compiler.set_stance("force_eager"):
            on_pause(pipe, progress)
        average.swap()
