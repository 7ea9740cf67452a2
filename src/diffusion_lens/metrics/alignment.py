"""How well images fit texts: the CLIP score, by a transformers CLIP model.

Source: Hessel et al., CLIPScore, arXiv 2104.08718; Prompt-to-prompt and head relevance papers
report the plain cosine similarity, as this does. Differs from CLIPScore: neither scaled by 2.5 nor
cut at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffusion_lens.border import Count, public
from diffusion_lens.border.devices import Device
from diffusion_lens.errors import ArgumentError
from diffusion_lens.showing.one_line import counted

OPENCLIP_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The model of the head relevance paper; its folder on the Hub loads with transformers."""


class ClipScore:
    """Cosine similarity of images and texts in a CLIP model's space.

    It sees objects, colours and styles, and hardly counts, relations or which attribute belongs to
    which object. Values of different CLIP models cannot be compared.

    Args:
        model: A transformers `CLIPModel`.
        processor: Its `CLIPProcessor`.
        batch_size: Images or texts at once.

    Examples:
        >>> score = ClipScore.load()  # downloads about 4 GB
        >>> score(images, ["a red circle"] * len(images))
    """

    @public
    def __init__(self, model: Any, processor: Any, *, batch_size: Count = 16) -> None:
        """Keep the model as it is."""
        self.model = model
        self.processor = processor
        self.batch_size = batch_size

    @classmethod
    @public
    def load(cls, model: str = OPENCLIP_H14, *, device: Device = "cpu") -> ClipScore:
        """Load a CLIP model by its id on the Hub, or from a folder.

        Args:
            model: Id or folder.
            device: Where to compute.
        """
        from transformers import CLIPModel, CLIPProcessor

        loaded: Any = CLIPModel.from_pretrained(model)
        return cls(loaded.eval().to(device), CLIPProcessor.from_pretrained(model))

    @public
    def __call__(
        self, images: Sequence[Any] | np.ndarray, texts: str | Sequence[str]
    ) -> Float[Tensor, " image"]:
        """Similarity of each image to its text.

        Args:
            images: PIL images, or uint8 arrays with axes height, width, rgb.
            texts: One for each image, or one for all.

        Returns:
            Cosines, in [-1, 1].

        Raises:
            ArgumentError: If texts and images do not pair.
        """
        listed = [texts] * len(images) if isinstance(texts, str) else list(texts)
        if len(listed) != len(images) or not listed:
            raise ArgumentError(
                f"{counted(len(listed), 'text')} for {counted(len(images), 'image')}; give one for "
                "each, or one for all"
            )
        distinct = list(dict.fromkeys(listed))
        rows = [distinct.index(text) for text in listed]
        return (self.embed_images(images) * self.embed_texts(distinct)[rows]).sum(-1)

    @public
    def embed_images(self, images: Sequence[Any] | np.ndarray) -> Float[Tensor, "image d"]:
        """Images as vectors of length 1."""
        if not len(images):
            raise ArgumentError("images= is empty; give one or more")
        found = []
        for start in range(0, len(images), self.batch_size):
            some = [_picture(image) for image in images[start : start + self.batch_size]]
            given = self.processor(images=some, return_tensors="pt").to(self.model.device)
            found.append(self._vectors(self.model.get_image_features, given))
        return torch.cat(found)

    @public
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text d"]:
        """Texts as vectors of length 1; what is longer than the model reads is cut off."""
        if not texts:
            raise ArgumentError("texts= is empty; give one or more")
        found = []
        for start in range(0, len(texts), self.batch_size):
            some = list(texts[start : start + self.batch_size])
            given = self.processor(text=some, padding=True, truncation=True, return_tensors="pt")
            found.append(self._vectors(self.model.get_text_features, given.to(self.model.device)))
        return torch.cat(found)

    def _vectors(self, features: Any, given: Any) -> Tensor:
        with torch.no_grad():
            found = features(**given)
        vectors = found if isinstance(found, Tensor) else found.pooler_output
        return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu()


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        pixels = np.asarray(image)
    except (RuntimeError, TypeError, ValueError):
        pixels = np.zeros(0)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ArgumentError(
            f"an image is a {pixels.dtype} {type(image).__name__} of shape {pixels.shape}; give "
            "PIL images, or uint8 arrays with axes height, width, rgb"
        )
    return Image.fromarray(pixels)
