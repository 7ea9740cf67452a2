"""Graded samples while a model trains: a picture and a line of grades at each pause."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffusion_lens.toys.generating import generate
from diffusion_lens.toys.shapes.evaluation import grade_images, test_captions
from diffusion_lens.training.config import TrainConfig
from diffusion_lens.training.state import Progress

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def contact_sheet(
    images: UInt8[np.ndarray, "batch height width rgb"], *, columns: int, scale: int = 3
) -> Image.Image:
    """Images side by side, enlarged without smoothing.

    Args:
        images: RGB, 0 to 255.
        columns: Images in a row.
        scale: Screen pixels for each pixel.

    Returns:
        The sheet.
    """
    height, width = images.shape[1:3]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 90, np.uint8)
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        top, left = 1 + row * (height + 2), 1 + column * (width + 2)
        sheet[top : top + height, left : left + width] = image
    drawn = Image.fromarray(sheet)
    return drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)


class GradedSamples:
    """Draw and grade a fixed few of the held-out captions.

    Args:
        config: The recipe, for guidance and steps.
        out: Folder of the run; gets `grades.csv` and `samples.png`.
        count: Captions; so few that the shares are noisy.
    """

    def __init__(self, config: TrainConfig, *, out: Path, count: int = 48) -> None:
        """Choose the captions."""
        self.config = config
        self.out = out
        captions = test_captions()
        order = np.random.default_rng(0).permutation(len(captions))[:count]
        self.captions = [captions[place] for place in order]

    def __call__(self, pipe: "DiffusionPipeline", progress: Progress) -> None:
        """Sample, grade, write.

        Args:
            pipe: The pipeline with the averaged weights in place.
            progress: How far it has come.
        """
        texts = [one.caption for one in self.captions]
        images = generate(
            pipe, texts, guidance=self.config.guidance, steps=self.config.sample_steps
        )
        contact_sheet(images, columns=8).save(self.out / "samples.png")
        report = grade_images(images, self.captions)
        with (self.out / "grades.csv").open("a", encoding="utf-8") as file:
            for group, shares in report.shares.items():
                cells = ",".join(f"{part}={share:.3f}" for part, share in shares.items())
                file.write(f"{progress.samples},{group},{report.counts[group]},{cells}\n")
