"""Maps to compare saliency methods with: two that know nothing, one that knows everything."""

import numpy as np
from jaxtyping import Float

from diffusion_lens.toys.benchmark.segmentation import SaliencyMethod, Task
from diffusion_lens.toys.shapes.world import RESOLUTION


def random_map(task: Task) -> Float[np.ndarray, "query rows columns"]:
    """Independent uniform noise on 16 x 16 cells: what chance reaches.

    Args:
        task: What is asked; only its seed matters.

    Returns:
        A map for each query.
    """
    return np.random.default_rng(task.seed).random((len(task.queries), 16, 16))


def centred_disc(task: Task) -> Float[np.ndarray, "query rows columns"]:
    """Brightest in the middle of the image, falling off evenly: what guessing reaches.

    Args:
        task: What is asked; backgrounds get the opposite map.

    Returns:
        A map for each query.
    """
    place = (np.arange(16) + 0.5) / 16 - 0.5
    disc = 1 - np.hypot(*np.meshgrid(place, place))
    return np.stack([-disc if query.kind == "background" else disc for query in task.queries])


def exact_on_grid(cells: int) -> SaliencyMethod:
    """The truth, as far as a grid of tokens can show it: the upper bound.

    Args:
        cells: Tokens along each side of the image.

    Returns:
        A method that answers with the share of each cell that the mask covers.

    Raises:
        ValueError: If the cells do not tile the image.
    """
    if RESOLUTION % cells:
        raise ValueError(f"{cells} cells do not tile {RESOLUTION} pixels; take a divisor of it")
    size = RESOLUTION // cells

    def exact(task: Task) -> Float[np.ndarray, "query rows columns"]:
        masks = np.stack([query.mask for query in task.queries]).astype(np.float64)
        return masks.reshape(-1, cells, size, cells, size).mean((2, 4))

    return exact
