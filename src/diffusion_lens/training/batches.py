"""Batches for training: rendered as they are needed, so that no scene is ever seen twice."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.repainting import repaint
from diffusion_lens.toys.shapes.sampling import training_examples
from diffusion_lens.toys.shapes.world import COLOURS, SHAPES, TEXTURES, UNKNOWN_WORD
from diffusion_lens.toys.tokenizers import PAD, UNKNOWN, VOCABULARY, caption_ids
from diffusion_lens.training.config import TrainConfig

ATTRIBUTES = frozenset((*COLOURS, *SHAPES, *TEXTURES))


@dataclass(frozen=True)
class Batch:
    """Samples of one training step.

    Args:
        images: Pixels in [-1, 1].
        clip_ids: The captions as the CLIP tokenizer gives them.
        t5_ids: The captions as the T5 tokenizer gives them.
    """

    images: Float[Tensor, "batch 3 height width"]
    clip_ids: Int[Tensor, "batch pos"]
    t5_ids: Int[Tensor, "batch pos"]


def to_pixels(images: np.ndarray) -> Float[Tensor, "batch 3 height width"]:
    """Images as the codecs read them.

    Args:
        images: RGB, 0 to 255, axes batch height width rgb.

    Returns:
        Pixels in [-1, 1].
    """
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _hide_word(caption: str, rng: np.random.Generator) -> str:
    """Replace one word by one that no tokenizer knows."""
    words = caption.split()
    words[int(rng.integers(len(words)))] = UNKNOWN_WORD
    return " ".join(words)


def _hide_attributes(caption: str, rng: np.random.Generator) -> str:
    """Replace about one in three words of colour, shape and texture by unknown ones."""
    return " ".join(
        UNKNOWN_WORD if word in ATTRIBUTES and rng.random() < 1 / 3 else word
        for word in caption.split()
    )


def batches(config: TrainConfig, *, start: int) -> Iterator[Batch]:
    """Endless training batches.

    Args:
        config: The recipe.
        start: The step at which training begins or goes on; another start gives other scenes.

    Yields:
        Batches on the CPU.
    """
    seed = config.seed + 1_000_003 * (start + 1)
    stream = training_examples(
        seed,
        single=config.single,
        forward=config.forward,
        placed=config.placed,
        only_exchangeable=config.only_exchangeable,
        easy_pairs=config.easy_pairs,
    )
    rng = np.random.default_rng((config.seed, start))
    while True:
        images, captions = [], []
        for _ in range(config.batch):
            example = next(stream)
            if config.unnamed_colours:
                example = repaint(example, share=config.unnamed_colours, rng=rng)
            images.append(render(example.scene, rng=rng).image)
            captions.append(example.caption)
            if rng.random() < config.caption_drop:
                captions[-1] = ""
            elif rng.random() < config.unknown_words:
                captions[-1] = _hide_word(captions[-1], rng)
            elif config.hidden_attributes and rng.random() < config.hidden_attributes:
                captions[-1] = _hide_attributes(captions[-1], rng)
        clip_ids = torch.tensor([caption_ids(caption, start=True) for caption in captions])
        t5_ids = torch.tensor([caption_ids(caption, start=False) for caption in captions])
        assert UNKNOWN < PAD + VOCABULARY and int(clip_ids.max()) < VOCABULARY
        yield Batch(to_pixels(np.stack(images)), clip_ids, t5_ids)
