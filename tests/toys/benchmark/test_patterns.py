"""The raw pattern is that of every layer that reads the text."""

import numpy as np
import torch
from PIL import Image

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import attention_maps
from diffusion_lens.toys import call_defaults
from diffusion_lens.toys.benchmark.patterns import raw_pattern
from diffusion_lens.toys.benchmark.segmentation import segmentation_tasks


def test_the_raw_pattern_is_the_map_of_all_heads() -> None:
    """Of the UNet, one of whose grids has as many places as the text has tokens."""
    model = HookedDiffusion.toy("shapes-unet")
    assert model.pipe is not None
    (task,) = segmentation_tasks(1, noise_level=0.5)
    found = attention_maps(
        model,
        task.caption,
        image=Image.fromarray(task.image),
        noise_level=task.noise_level,
        seed=task.seed,
        upsample="nearest",
        **call_defaults(model.pipe),
    )
    rows = [at for at, label in enumerate(found.labels) if not label.startswith("[")]
    words = found.maps[0][rows].double().numpy()
    expected = np.stack([words[list(query.words)].mean(0) for query in task.queries])
    np.testing.assert_allclose(raw_pattern(model.pipe)(task), expected, atol=1e-4, rtol=1e-3)
    assert not any(part._forward_hooks for part in model.denoiser.modules())
    assert torch.is_grad_enabled()
