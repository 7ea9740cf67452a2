"""One tiny pipeline for each family, and the settings of a short run."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.tiny_pipelines import packed, plain, references, several_texts
from tests.tiny_pipelines.parts import LAYERS

HEIGHT, WIDTH = 4, 6
"""The image in tokens: not square."""

SIZE = (4 * HEIGHT, 4 * WIDTH)
"""In pixels, where an autoencoder halves it once and a patch has two latents on a side."""


@dataclass(frozen=True)
class TinyPipeline:
    """How a family's pipeline is made and run.

    Attributes:
        make: What makes it.
        pixels: Height and width of the image in pixels.
        guided: Settings with guidance; None where the pipeline has none.
        unguided: Settings without.
        settings: Further settings of every run.
        negative: Whether the pipeline takes a negative prompt.
        causal: Whether no token's embedding depends on later ones.
        padded: Whether the image's tokens are filled up.
        first: Tokens of the first of several tokenizers; None where there is one.
        runs_unguided: Whether it runs without guidance with the scheduler that it has here.
    """

    make: Callable[[], Any]
    pixels: tuple[int, int]
    guided: Mapping[str, Any] | None
    unguided: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    negative: bool = True
    causal: bool = True
    padded: bool = False
    first: int | None = None
    runs_unguided: bool = True


PIPELINES: dict[str, TinyPipeline] = {
    "flux2": TinyPipeline(
        packed.flux2,
        SIZE,
        None,
        {"guidance_scale": 4.0},
        {"text_encoder_out_layers": LAYERS, "max_sequence_length": 200},
        negative=False,
    ),
    "flux2_klein": TinyPipeline(
        packed.flux2_klein,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"text_encoder_out_layers": LAYERS, "max_sequence_length": 60},
        negative=False,
    ),
    "z_image": TinyPipeline(
        packed.z_image,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 0.0},
        {"max_sequence_length": 60},
        padded=True,
    ),
    "qwen_image": TinyPipeline(
        packed.qwen_image,
        SIZE,
        {"true_cfg_scale": 4.0},
        {"true_cfg_scale": 1.0},
        {"max_sequence_length": 60},
    ),
    "krea2": TinyPipeline(
        packed.krea2,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 0.0},
        {"max_sequence_length": 60},
    ),
    "chroma": TinyPipeline(
        packed.chroma,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
    ),
    "hunyuan_image": TinyPipeline(packed.hunyuan_image, (2 * HEIGHT, 2 * WIDTH), {}, {}),
    "longcat": TinyPipeline(
        packed.longcat,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"enable_prompt_rewrite": False},
    ),
    "ovis": TinyPipeline(
        packed.ovis,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
    ),
    "bria": TinyPipeline(
        packed.bria,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
    ),
    "pixart": TinyPipeline(
        plain.pixart,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60, "use_resolution_binning": False},
        causal=False,
    ),
    "pixart_sigma": TinyPipeline(
        plain.pixart_sigma,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60, "use_resolution_binning": False},
        causal=False,
    ),
    "lumina2": TinyPipeline(
        plain.lumina2,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 150},
    ),
    "auraflow": TinyPipeline(
        plain.auraflow,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
    ),
    "cogview4": TinyPipeline(
        plain.cogview4,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 64},
    ),
    "cogview3_plus": TinyPipeline(
        plain.cogview3_plus,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
        runs_unguided=False,  # which diffusers has for the DPM scheduler alone
    ),
    "sana": TinyPipeline(
        plain.sana,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60, "use_resolution_binning": False},
    ),
    "kandinsky5": TinyPipeline(
        several_texts.kandinsky5,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
    ),
    "hidream": TinyPipeline(
        several_texts.hidream,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        padded=True,
    ),
    "ernie_image": TinyPipeline(
        plain.ernie_image,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"use_pe": False},
    ),
    "prx": TinyPipeline(
        plain.prx,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"use_resolution_binning": False},
        causal=False,
    ),
    "nucleus": TinyPipeline(
        packed.nucleus,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 264},
    ),
    "bria_fibo": TinyPipeline(
        packed.bria_fibo,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
    ),
    "ideogram4": TinyPipeline(
        packed.ideogram4,
        SIZE,
        None,
        {"guidance_scale": 4.0, "guidance_schedule": None},
        {"max_sequence_length": 60},
        negative=False,
    ),
    "hunyuan_dit": TinyPipeline(
        plain.hunyuan_dit,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"use_resolution_binning": False},
        causal=False,
        first=77,
    ),
    "joy_image_edit": TinyPipeline(
        references.joy_image_edit,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
    ),
    "joy_image_edit_plus": TinyPipeline(
        references.joy_image_edit_plus,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
    ),
}
"""Every family's."""


def tiny_pipeline(name: str) -> Any:
    """A pipeline of its own."""
    return quiet(PIPELINES[name].make)


def quiet(make: Callable[[], Any]) -> Any:
    """A pipeline made with the same weights each time, which says nothing."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return pipe
