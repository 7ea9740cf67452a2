"""From a training state to the shipped model: averaged weights in fp16, written by diffusers."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from diffusion_lens.toys.loading import CARD, checksums
from diffusion_lens.toys.pipelines import fill_unseen_words
from diffusion_lens.toys.train.config import config_names, load_config
from diffusion_lens.toys.train.optimizers import new_optimizers
from diffusion_lens.toys.train.setup import TRAINED, new_pipeline, trained_parameters
from diffusion_lens.toys.train.state import Average, load_state


def export(model: str, *, state: Path, out: Path, codec: Path | None = None) -> None:
    """Write a model's averaged weights as a pipeline folder.

    Args:
        model: Name of its recipe.
        state: Folder of a training state.
        out: Folder of the pipeline.
        codec: Folder of a trained codec, for a UNet; None keeps the constructed one.

    Raises:
        ValueError: If a UNet is exported without a trained codec.
    """
    from diffusers import AutoencoderTiny

    config = load_config(model)
    pipe: Any = new_pipeline(config)
    parameters = trained_parameters(pipe, config)
    average = Average(parameters, decay=config.ema)
    progress = load_state(state, average=average, optimizers=new_optimizers(parameters, config))
    average.swap()
    fill_unseen_words(pipe.text_encoder)
    if codec is not None:
        pipe.register_modules(vae=AutoencoderTiny.from_pretrained(codec))
    elif config.family == "unet":
        raise ValueError("a UNet needs its decoder: give --codec, made by toys.train.decoder")
    for name in TRAINED[config.family]:
        getattr(pipe, name).eval()
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(out)
    _drop_derived_settings(out / "vae" / "config.json")
    for encoder in out.glob("text_encoder*/config.json"):
        _load_in_full(encoder)
    facts = {"model": model, "step": progress.step, "samples": progress.samples}
    facts |= {"training_seconds": round(progress.seconds), "sha256": checksums(out)}
    facts |= {"guidance": config.guidance, "sample_steps": config.sample_steps}
    (out / CARD).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _drop_derived_settings(file: Path) -> None:
    """Leave out what AutoencoderTiny derives from its other settings and then warns about."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("block_out_channels", None)
    settings.pop("_name_or_path", None)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _load_in_full(file: Path) -> None:
    """Load the encoder's float16 file in float32, as diffusers does with its own models' files."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Export one model."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.toys.train.export")
    parser.add_argument("--model", required=True, choices=config_names())
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--codec", type=Path)
    arguments = parser.parse_args()
    export(arguments.model, state=arguments.state, out=arguments.out, codec=arguments.codec)


if __name__ == "__main__":
    main()
