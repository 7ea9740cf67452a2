"""Several samples of one prompt in a batch, which not every pipeline can make."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.errors import DiffusionLensError, PatchingError
from diffusion_lens.showing.one_line import counted


@contextlib.contextmanager
def several_samples(model: HookedDiffusion, run: Run) -> Iterator[None]:
    """Say what to do where a pipeline that starts from an image fails at a batch.

    Some of diffusers' pipelines (ConsisID) take a list of prompts and one image, and fail somewhere
    in their own code.

    Args:
        model: The model.
        run: What runs while the context is open.

    Raises:
        PatchingError: In the place of an error of the pipeline's own.
    """
    try:
        yield
    except DiffusionLensError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        if run.samples < 2 or "image" not in run.settings:
            raise
        raise PatchingError(
            f"{type(model.pipe).__name__} could not make {counted(run.samples, 'sample')} from one "
            f"image in a batch ({error}). Give seeds=1 and batch_size=1, and sweep once for each "
            "seed (seeds=[4], …)"
        ) from error
