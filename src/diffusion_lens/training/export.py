"""From a training state to the shipped model: averaged weights in fp16, written by diffusers."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_lens.toys.loading import CARD, checksums
from diffusion_lens.toys.pipelines import fill_unseen_words
from diffusion_lens.training.config import config_names, load_config
from diffusion_lens.training.optimizers import new_optimizers
from diffusion_lens.training.setup import TRAINED, new_pipeline, trained_parameters
from diffusion_lens.training.state import Average, load_state, refuse_other_model


def export(model: str, *, state: Path, out: Path, codec: Path | None = None) -> None:
    """Write a model's averaged weights as a pipeline folder.

    Args:
        model: Name of its recipe.
        state: Folder of a training state.
        out: Folder of the pipeline.
        codec: Folder of a trained codec, for a UNet; None keeps the constructed one.

    Raises:
        ValueError: If the folder has no state of this model, or a UNet is exported without a
            trained codec.
    """
    from diffusers import AutoencoderTiny

    config = load_config(model)
    pipe: Any = new_pipeline(config)
    parameters = trained_parameters(pipe, config)
    refuse_other_model(state, model=model, trained=parameters)
    average = Average(parameters, decay=config.ema)
    progress = load_state(state, average=average, optimizers=new_optimizers(parameters, config))
    average.swap()
    fill_unseen_words(pipe.text_encoder)
    if codec is not None:
        pipe.register_modules(vae=AutoencoderTiny.from_pretrained(codec))
    elif config.family == "unet":
        raise ValueError(
            "a UNet needs its decoder: give --codec, made by diffusion_lens.training.decoder"
        )
    for name in TRAINED[config.family]:
        getattr(pipe, name).eval()
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(out)
    # AutoencoderTiny derives these from its other settings and then warns about them.
    _edit(out / "vae" / "config.json", drop=("block_out_channels", "_name_or_path"))
    for encoder in out.glob("text_encoder*/config.json"):
        # transformers keeps the float16 of the file, where diffusers loads its models in float32.
        _edit(encoder, dtype="float32")
    facts = {"model": model, "step": progress.step, "samples": progress.samples}
    facts |= {"training_seconds": round(progress.seconds), "sha256": checksums(out)}
    facts |= {"guidance": config.guidance, "sample_steps": config.sample_steps}
    (out / CARD).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _edit(file: Path, *, drop: Sequence[str] = (), **changed: str) -> None:
    """Leave out or change settings of a component that is written."""
    settings = json.loads(file.read_text(encoding="utf-8")) | changed
    kept = {name: value for name, value in settings.items() if name not in drop}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Export one model."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.training.export")
    parser.add_argument("--model", required=True, choices=config_names())
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--codec", type=Path)
    arguments = parser.parse_args()
    export(arguments.model, state=arguments.state, out=arguments.out, codec=arguments.codec)


if __name__ == "__main__":
    main()
