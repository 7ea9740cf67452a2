"""What a run trains: a fresh pipeline, its trained parameters, settings for speed."""

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_lens.toys.loading import load
from diffusion_lens.toys.pipelines import mmdit_pipeline, unet_pipeline
from diffusion_lens.training.attention import PlainAttention
from diffusion_lens.training.config import TrainConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TRAINED = {
    "unet": ("unet", "text_encoder"),
    "mmdit": ("transformer", "text_encoder", "text_encoder_2"),
}
"""The components of each family that are trained; the codec is not."""


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


def put_shipped_weights(pipe: "DiffusionPipeline", config: TrainConfig) -> None:
    """Give a pipeline the trained weights of the model that ships.

    Args:
        pipe: The pipeline; changed in place.
        config: Its recipe.
    """
    shipped = load(config.model)
    for name in TRAINED[config.family]:
        getattr(pipe, name).load_state_dict(getattr(shipped, name).state_dict())


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
