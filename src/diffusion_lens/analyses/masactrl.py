"""MasaCtrl: targets ask the source's image for what to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.edited_images import EditedImages, edited_run, inference_steps
from diffusion_lens.analyses.reference_run import blocks_of, run_with_reference
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import Amount, PipelineSetting, public
from diffusion_lens.errors import RunError

CITATION = (
    "Cao et al., MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image "
    "Synthesis and Editing, ICCV 2023, arXiv 2304.08465"
)
FIRST_STEP, FIRST_BLOCK, BLOCKS = 4, 10, 16
"""Published: from this step of 50 on, in the blocks from 10 of Stable Diffusion's 16 on."""


@public
def masactrl(
    model: HookedDiffusion,
    source: str | Sequence[str] | Run,
    targets: str | Sequence[str],
    *,
    first_step: Amount = FIRST_STEP,
    blocks: Iterable[int] | None = None,
    record: bool | str | Path = False,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> EditedImages:
    """Generate a source and edits that move its things and keep their looks.

    From some step and block on the target's image queries meet the source's keys and values: it
    takes from the source whatever looks most like what it is drawing, wherever that lies. Things
    that only the target has cannot be taken from anywhere, and colours hardly change.

    Args:
        model: A model whose image attends to itself. For a real image give `latents` that `invert`
            found.
        source: The source prompt, or a `Run` of one.
        targets: A target prompt or several.
        first_step: The step from which on keys and values are the source's.
        blocks: In which blocks. None for the published ones: from 10 on, of a model with at least
            16 blocks; else the last three eighths.
        record: Run the source first and keep its keys and values, in memory (True) or in a folder.
        seed: Noise of all rows.
        **settings: Arguments of the pipeline's own call; `latents` of one row serve all.

    Returns:
        Images and latents, the source's first.

    Raises:
        RunError: If there are several sources, or a block or step does not exist.
        UnsupportedModelError: If the image does not attend to itself.

    Source: arXiv 2304.08465, section 3, and the released code; each guidance branch takes from the
    source's own. Differs: without the masks of section 3.3; other families than U-Nets are ours.
    """
    run = edited_run(source, targets, seed=seed, settings=settings)
    count = inference_steps(model, run)
    if not 0 <= first_step < count:
        raise RunError(
            f"first_step={first_step} is none of the {count} steps of this run (0 to {count - 1}); "
            "name one of these, or raise num_inference_steps"
        )
    chosen = late_blocks(model) if blocks is None else blocks
    names = blocks_of(model, chosen, ("attn.img.hook_k", "attn.img.hook_v"))
    sites = [Site(name, steps=slice(first_step, None)) for name in names]
    return run_with_reference(
        model,
        run,
        sites,
        record=record,
        method="masactrl",
        citation=CITATION,
        first_step=first_step,
    )


def late_blocks(model: HookedDiffusion) -> range:
    """The blocks in which keys and values are the source's, by default."""
    count = model.n_blocks
    first = FIRST_BLOCK if count >= BLOCKS else math.ceil(count * FIRST_BLOCK / BLOCKS)
    return range(first, count)
