"""The command line of training."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from diffusion_lens.toys.loading import folder
from diffusion_lens.training.config import TrainConfig, config_names, load_config
from diffusion_lens.training.loop import Limits, Trainer, train
from diffusion_lens.training.samples import GradedSamples


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.training", description=__doc__)
    parser.add_argument("--model", required=True, choices=config_names())
    parser.add_argument("--out", required=True, type=Path, help="folder of the run")
    parser.add_argument("--resume", type=Path, help="folder of a state to begin from")
    parser.add_argument("--shipped", action="store_true", help="begin from the shipped weights")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="training time")
    parser.add_argument("--steps", type=int, help="steps of this run; default: the recipe's rest")
    parser.add_argument("--decay-steps", type=int, help="last steps, rate to zero")
    parser.add_argument("--batch", type=int, help="instead of the recipe's; a GPU wants more")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--samples", type=int, default=48, help="graded at each pause; 0: none")
    parser.add_argument("--pause-minutes", type=float, default=10.0, help="between two states")
    parser.add_argument("--codec", type=Path, help="draws the samples; default: the shipped one")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser")
    return parser.parse_args()


def _limits(arguments: argparse.Namespace, config: TrainConfig, *, taken: int) -> Limits:
    """The run's limits: what was asked for, else the rest of the recipe."""
    asked = arguments.steps is not None
    decay = 0 if asked else config.decay_steps
    return Limits(
        minutes=arguments.minutes,
        steps=arguments.steps if asked else max(0, config.steps - taken),
        decay_steps=decay if arguments.decay_steps is None else arguments.decay_steps,
    )


def main() -> None:
    """Train one model from its recipe."""
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = load_config(arguments.model)
    if arguments.batch:
        config = replace(config, batch=arguments.batch)
    if arguments.learning_rate:
        config = replace(config, learning_rate=arguments.learning_rate)
    trainer = Trainer(
        config,
        out=arguments.out,
        device=arguments.device,
        resume=arguments.resume,
        shipped=arguments.shipped,
        compiled=arguments.compile,
    )
    graded = None
    if arguments.samples:
        graded = GradedSamples(config, out=arguments.out, count=arguments.samples)
        codec = arguments.codec or folder(config.model) / "vae"
        trainer.pipe.vae.load_state_dict(AutoencoderTiny.from_pretrained(codec).state_dict())
    progress = train(
        trainer,
        limits=_limits(arguments, config, taken=trainer.progress.step),
        on_pause=graded,
        pause_minutes=arguments.pause_minutes,
    )
    done = arguments.steps is None and progress.step >= config.steps
    rest = "the recipe is done" if done else "the same command goes on from there"
    sys.stdout.write(f"{arguments.out} holds step {progress.step}; {rest}\n")


if __name__ == "__main__":
    main()
