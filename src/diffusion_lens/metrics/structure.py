"""How alike two images are in structure: cosine similarity of DINOv2 vectors, masks left out.

Source: Oquab et al., DINOv2, arXiv 2304.07193; the similarity of backgrounds as in Park et al.,
arXiv 2412.02237, section 5.2 (BG-DINO).
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

DINOV2_BASE = "facebook/dinov2-base"


class DinoSimilarity:
    """Cosine similarity of the class tokens of two images, or of what lies outside their masks.

    It sees layout and kinds of things, and hardly colours. Masked pixels are painted with the
    processor's mean colour, which is 0 to the model: a mask's outline remains visible. Values of
    different models cannot be compared.

    Args:
        model: A transformers `Dinov2Model`.
        processor: Its image processor.
        batch_size: Images at once.
    """

    @public
    def __init__(self, model: Any, processor: Any, *, batch_size: Count = 16) -> None:
        """Keep the model as it is."""
        self.model = model
        self.processor = processor
        self.batch_size = batch_size

    @classmethod
    @public
    def load(cls, model: str = DINOV2_BASE, *, device: Device = "cpu") -> DinoSimilarity:
        """Load a DINOv2 model by its id on the Hub, or from a folder.

        Args:
            model: Id or folder.
            device: Where to compute.
        """
        from transformers import AutoImageProcessor, AutoModel

        loaded: Any = AutoModel.from_pretrained(model)
        return cls(loaded.eval().to(device), AutoImageProcessor.from_pretrained(model))

    @public
    def __call__(
        self,
        images: Sequence[Image.Image],
        others: Sequence[Image.Image],
        *,
        masks: Sequence[Any] | None = None,
        other_masks: Sequence[Any] | None = None,
    ) -> Float[Tensor, " image"]:
        """Similarity pair by pair.

        Args:
            images: Images, such as sources.
            others: One for each, such as their edits.
            masks: For each image, True at the pixels that do not count, such as the object; axes
                height, width.
            other_masks: The same for the others.

        Returns:
            Cosines, in [-1, 1].

        Raises:
            ArgumentError: If they do not pair, or a mask has another size than its image.
        """
        if len(images) != len(others) or not images:
            raise ArgumentError(
                f"{counted(len(images), 'image')} and {len(others)} others; give one other for "
                "each image"
            )
        return (self.embed(images, masks) * self.embed(others, other_masks)).sum(-1)

    @public
    def embed(
        self, images: Sequence[Image.Image], masks: Sequence[Any] | None = None
    ) -> Float[Tensor, "image d"]:
        """Images as vectors of length 1, what is masked left out."""
        if masks is not None:
            if len(masks) != len(images):
                raise ArgumentError(
                    f"{counted(len(masks), 'mask')} for {counted(len(images), 'image')}; give one "
                    "for each"
                )
            images = [self._without(*pair) for pair in zip(images, masks, strict=True)]
        found = []
        for start in range(0, len(images), self.batch_size):
            some = [image.convert("RGB") for image in images[start : start + self.batch_size]]
            given = self.processor(images=some, return_tensors="pt").to(self.model.device)
            with torch.no_grad():
                vectors = self.model(**given).last_hidden_state[:, 0]
            found.append(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu())
        return torch.cat(found)

    def _without(self, image: Image.Image, mask: Any) -> Image.Image:
        pixels, inside = np.array(image.convert("RGB")), np.asarray(mask, dtype=bool)
        if inside.shape != pixels.shape[:2]:
            raise ArgumentError(
                f"a mask of shape {inside.shape} for an image of {pixels.shape[:2]} (height, width)"
            )
        pixels[inside] = np.round(255 * np.array(self.processor.image_mean)).astype(np.uint8)
        return Image.fromarray(pixels)
