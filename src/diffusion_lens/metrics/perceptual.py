"""How unlike two images look: LPIPS, by the authors' package.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv
1801.03924; package `lpips`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffusion_lens.border import Count, public
from diffusion_lens.border.devices import Device
from diffusion_lens.errors import ArgumentError
from diffusion_lens.showing.one_line import counted

Net = Literal["alex", "vgg", "squeeze"]


class PerceptualDistance:
    """LPIPS of pairs of images; 0 for images that are the same.

    Args:
        model: An `lpips.LPIPS`, or anything that takes two batches in [-1, 1] and gives a number
            for each pair.
        batch_size: Pairs at once.
    """

    @public
    def __init__(self, model: Any, *, batch_size: Count = 16) -> None:
        """Keep the model as it is."""
        self.model = model
        self.batch_size = batch_size

    @classmethod
    @public
    def load(cls, net: Net = "alex", *, device: Device = "cpu") -> PerceptualDistance:
        """Load the package's model.

        Args:
            net: `"alex"` (the authors' choice for scores), `"vgg"` or `"squeeze"`.
            device: Where to compute.

        Raises:
            ImportError: If the package is not installed.
        """
        try:
            import lpips  # type: ignore[import-not-found]
        except ImportError as error:
            raise ImportError(
                "LPIPS needs the package lpips: pip install 'diffusion-lens[metrics]'"
            ) from error
        return cls(lpips.LPIPS(net=net, verbose=False).eval().to(device))

    @public
    def __call__(
        self, images: Sequence[Image.Image], others: Sequence[Image.Image]
    ) -> Float[Tensor, " image"]:
        """Distance pair by pair.

        Raises:
            ArgumentError: If they do not pair, or differ in size.
        """
        if len(images) != len(others) or not images:
            raise ArgumentError(
                f"{counted(len(images), 'image')} and {len(others)} others; give one other for "
                "each image"
            )
        found = []
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            with torch.no_grad():
                found.append(self.model(_batch(images[rows]), _batch(others[rows])).flatten())
        return torch.cat(found).float().cpu()


def _batch(images: Sequence[Image.Image]) -> Float[Tensor, "image 3 height width"]:
    """Pixels in [-1, 1].

    Raises:
        ArgumentError: If sizes differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ArgumentError(f"images of the sizes {sorted(sizes)} cannot be compared; resize them")
    pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
