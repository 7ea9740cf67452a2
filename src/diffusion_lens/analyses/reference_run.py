"""A source and its edits run together, or the source recorded once and the edits run after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_lens import HookedDiffusion, Output, Run, Site
from diffusion_lens.analyses.edited_images import EditedImages, edited_images, rows_of
from diffusion_lens.errors import RunError, UnsupportedModelError, listing
from diffusion_lens.interventions.reference import Reference, beside


def run_with_reference(
    model: HookedDiffusion,
    run: Run,
    sites: Sequence[Site],
    *,
    record: bool | str | Path,
    method: str,
    citation: str,
    **more: Any,
) -> EditedImages:
    """Run a source and its edits, the source's activations put in place of the edits'.

    Args:
        model: The model.
        run: Made by `edited_run`: row 0 is the source.
        sites: What of the source is injected.
        record: False runs all as one batch. True runs the source first and keeps its activations in
            memory; a folder keeps them there, which needs no more memory for more steps.
        method: Name of the analysis.
        citation: What to cite.
        **more: What else made the result.
    """
    about = {"sites": [str(site) for site in sites], "record": str(record), **more}
    if record is False:
        out = model.run_with_hooks(run, fwd_hooks=beside(sites))
        return edited_images(out, method=method, citation=citation, **about)
    reference = Reference(None if record is True else record)
    source = model.run_with_hooks(rows_of(run, 0, 1), fwd_hooks=reference.recording(sites))
    targets = model.run_with_hooks(
        rows_of(run, 1, len(run.prompts)), fwd_hooks=reference.injecting(sites)
    )
    assert source.latents is not None
    assert targets.latents is not None
    return EditedImages(
        source=run.prompts[0],
        targets=tuple(run.prompts[1:]),
        images=_joined(source, targets),
        latents=torch.cat([source.latents, targets.latents]),
        method=method,
        made_by={**targets.made_by.as_dict(), **about},
        citation=citation,
    )


def blocks_of(model: HookedDiffusion, blocks: Iterable[int], names: Sequence[str]) -> list[str]:
    """Hook points of some blocks.

    Args:
        model: The model.
        blocks: Indices of blocks.
        names: What of each block, such as `"attn.img.hook_k"`.

    Raises:
        RunError: If a block does not exist.
        UnsupportedModelError: If none of the blocks has these points.
    """
    wanted = sorted(set(blocks))
    beyond = [block for block in wanted if not 0 <= block < model.n_blocks]
    if beyond or not wanted:
        raise RunError(
            f"blocks {listing(beyond) or 'none'} were asked for, {model.name} has the blocks 0 to "
            f"{model.n_blocks - 1}"
        )
    every = [f"blocks.{block}.{name}" for block in wanted for name in names]
    found = [name for name in every if name in model.points]
    if not found:
        raise UnsupportedModelError(
            f"{model.name} has none of {listing(every, most=3)}; see `model.hook_table()` for what "
            "it has"
        )
    return found


def _joined(source: Output, targets: Output) -> Any:
    pairs = ((source.images, targets.images), (source.frames, targets.frames))
    for one, other in pairs:
        if one is not None and other is not None:
            return [*one, *other]
    return None
