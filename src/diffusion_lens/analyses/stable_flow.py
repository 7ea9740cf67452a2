"""Stable Flow: the blocks that a transformer cannot do without, and edits through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.edited_images import EditedImages, edited_run
from diffusion_lens.analyses.reference_run import blocks_of, run_with_reference
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import Amount, PipelineSetting, public
from diffusion_lens.errors import ResultError, RunError, UnsupportedModelError
from diffusion_lens.interventions import bypass_block
from diffusion_lens.showing.one_line import counted, one_line, short

CITATION = (
    "Avrahami et al., Stable Flow: Vital Layers for Training-Free Image Editing, CVPR 2025, "
    "arXiv 2411.14430"
)
Distance = Callable[[Sequence[Any], Sequence[Any]], Sequence[float]]


@dataclass(frozen=True)
class VitalBlocks(Saved):
    """How far images move when a block is skipped.

    Attributes:
        distances: Mean over prompts and seeds, and each of these apart; axes block, image.
        distance: What was measured.
        prompts: The prompts.
        made_by: What was run.
        citation: What to cite.
    """

    distances: Tensor
    distance: str
    prompts: tuple[str, ...]
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    @public
    def top(self, count: Amount) -> tuple[int, ...]:
        """The blocks whose absence moves images most, most first.

        Raises:
            ResultError: If there are not as many.
        """
        blocks = len(self.distances)
        if not 1 <= count <= blocks:
            raise ResultError(
                f"top({count}): there are {counted(blocks, 'block')}; give 1 to {blocks}"
            )
        order = self.distances.mean(1).argsort(descending=True, stable=True)
        return tuple(int(block) for block in order[:count])

    def plot(self) -> Any:
        """The mean distance of each block."""
        from diffusion_lens import viz

        means = self.distances.mean(1)
        return viz.bars(
            {str(block): float(mean) for block, mean in enumerate(means)},
            x_title="block that is skipped",
            y_title=self.distance,
            title="Vital blocks",
            note="Mean distance between the images with and without a block: 0 is a block that "
            "changes nothing.",
        )

    def __repr__(self) -> str:
        """Sizes and the first blocks in one line."""
        blocks, images = self.distances.shape
        return one_line(
            self,
            short(self.prompts),
            counted(blocks, "block"),
            counted(images, "image"),
            f"{self.distance}, block {self.top(1)[0]} moves most",
            made_by=self.made_by,
            look=(".top(5)", ".plot()"),
        )


@public
def vital_blocks(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    distance: Distance | None = None,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> VitalBlocks:
    """Skip each block in turn, and measure how far the images move.

    A block that moves images far when it is skipped is not thereby the place where anything in
    particular is decided; and blocks that do the same work hide each other.

    Args:
        model: A model whose streams can pass by its blocks.
        prompts: Prompts to generate.
        distance: Takes images without and with the block, gives a number for each; the published
            one is 1 less the cosine of `diffusion_lens.metrics.structure.DinoSimilarity`. None for
            the mean absolute difference of pixels in [0, 1].
        seed: As for a run.
        **settings: Arguments of the pipeline's own call.

    Returns:
        Distances by block.

    Raises:
        ResultError: If the distance does not give one number for each image.
        RunError: If the run makes no images.

    Source: arXiv 2411.14430, section 3.1. Differs: the default distance is ours.
    """
    run = Run.of(prompts, seed=seed, settings=settings)
    plain = model(run)
    if plain.images is None:
        raise RunError(
            "vital_blocks compares images, and this run made latents or a video; leave output_type "
            "out, with a model that makes images"
        )
    measure = pixel_distance if distance is None else distance
    rows = []
    for block in range(model.n_blocks):
        out = model.run_with_hooks(run, fwd_hooks=bypass_block(model, block))
        rows.append(_measured(measure, plain.images, out.images))
    return VitalBlocks(
        torch.tensor(rows),
        getattr(measure, "__name__", repr(measure)),
        tuple(run.prompts),
        plain.made_by.as_dict(),
    )


def _measured(measure: Distance, one: Any, other: Any) -> list[float]:
    values = measure(one, other)
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = []
    if len(found) != len(one):
        raise ResultError(
            f"distance={measure!r} gave {values!r:.60} for {counted(len(one), 'image')}; it takes "
            "images without and with a block, and gives one number for each"
        )
    return found


def pixel_distance(one: Sequence[Any], other: Sequence[Any]) -> list[float]:
    """Mean absolute difference of the pixels of images, in [0, 1], pair by pair."""
    import numpy as np

    return [
        float(np.abs(np.asarray(a, dtype="float32") - np.asarray(b, dtype="float32")).mean() / 255)
        for a, b in zip(one, other, strict=True)
    ]


@public
def stable_flow(
    model: HookedDiffusion,
    source: str | Sequence[str] | Run,
    targets: str | Sequence[str],
    *,
    blocks: Iterable[int] | VitalBlocks,
    record: bool | str | Path = False,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> EditedImages:
    """Generate a source and edits that keep it through the vital blocks of a transformer.

    At every step the image's keys and values of these blocks are the source's.

    Args:
        model: A model in which image and text share their attention (Flux, SD3). For a real image
            give `latents` that `invert` found.
        source: The source prompt, or a `Run` of one.
        targets: A target prompt or several.
        blocks: Vital blocks, as `vital_blocks(...).top(5)` gives them. Published for FLUX.1-dev:
            0, 1, 17, 18, 25, 28, 53, 54, 56.
        record: Run the source first and keep its keys and values, in memory (True) or in a folder.
        seed: Noise of all rows.
        **settings: Arguments of the pipeline's own call; `latents` of one row serve all.

    Returns:
        Images and latents, the source's first.

    Raises:
        RunError: If there are several sources, or a block does not exist.
        UnsupportedModelError: If image and text do not share an attention.

    Source: arXiv 2411.14430, section 3.2. Differs: implemented from the paper's description; latent
    nudging of inverted images is `latents * 1.15`.
    """
    run = edited_run(source, targets, seed=seed, settings=settings)
    joint = [site for site in model.text_pattern_sites() if "img" in _keys(model, str(site.name))]
    if not joint:
        raise UnsupportedModelError(
            f"stable_flow is for models in which image and text share their attention; in "
            f"{model.name} they do not: `masactrl` does the same to a self-attention"
        )
    chosen = blocks.top(max(1, model.n_blocks // 6)) if isinstance(blocks, VitalBlocks) else blocks
    names = blocks_of(model, chosen, ("attn.img.hook_k", "attn.img.hook_v"))
    return run_with_reference(
        model,
        run,
        [Site(name) for name in names],
        record=record,
        method="stable_flow",
        citation=CITATION,
    )


def _keys(model: HookedDiffusion, name: str) -> tuple[str, ...]:
    return model.points[name].sequences["key"]
