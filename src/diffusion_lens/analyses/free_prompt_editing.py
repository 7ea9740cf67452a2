"""Free-Prompt-Editing: the source's self-attention maps, and the target's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.edited_images import EditedImages, edited_run, inference_steps
from diffusion_lens.analyses.prompt_to_prompt.schedule import self_steps
from diffusion_lens.analyses.reference_run import blocks_of, run_with_reference
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import Fraction, PipelineSetting, public
from diffusion_lens.errors import RunError

CITATION = (
    "Liu et al., Towards Understanding Cross and Self-Attention in Stable Diffusion for "
    "Text-Guided Image Editing, CVPR 2024, arXiv 2403.03431"
)


@public
def free_prompt_editing(
    model: HookedDiffusion,
    source: str | Sequence[str] | Run,
    targets: str | Sequence[str],
    *,
    self_replace: Fraction | Sequence[Fraction] = 0.8,
    blocks: Iterable[int] | None = None,
    record: bool | str | Path = False,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> EditedImages:
    """Generate a source and edits whose image attends to itself as the source's does.

    Layout is kept by where the image attends in itself; what it reads from the prompt is left to
    the target. Where the target's things have other outlines than the source's, they are forced
    into these.

    Args:
        model: A model whose image attends to itself. For a real image give `latents` that `invert`
            found.
        source: The source prompt, or a `Run` of one.
        targets: A target prompt or several; they need not have the source's words.
        self_replace: For which share of the steps; a number is the share from the first step on, a
            pair where it begins and ends.
        blocks: Which blocks; None for all.
        record: Run the source first and keep what it attends to, in memory (True) or in a folder.
        seed: Noise of all rows.
        **settings: Arguments of the pipeline's own call; `latents` of one row serve all.

    Returns:
        Images and latents, the source's first.

    Raises:
        RunError: If there are several sources, or a block or range is none.
        UnsupportedModelError: If the image does not attend to itself.

    Source: arXiv 2403.03431, section 4; limits of steps are those of Prompt-to-Prompt's code.
    Differs: in an attention that images and text share, the image's part of the pattern is
    injected; that is ours.
    """
    run = edited_run(source, targets, seed=seed, settings=settings)
    steps = self_steps(self_replace, steps=inference_steps(model, run))
    if not steps:
        raise RunError(
            f"self_replace={self_replace!r} covers none of the steps, so that nothing would be "
            "injected; give a larger share, or more steps"
        )
    every = range(model.n_blocks) if blocks is None else blocks
    names = blocks_of(model, every, ("attn.hook_pattern",))
    sites = pattern_sites(model, names, steps)
    return run_with_reference(
        model,
        run,
        sites,
        record=record,
        method="free_prompt_editing",
        citation=CITATION,
        self_replace=self_replace,
    )


def pattern_sites(model: HookedDiffusion, names: Sequence[str], steps: Iterable[int]) -> list[Site]:
    """What makes the image attend to itself as the source's does, in the conditional branch.

    Where only the image attends to the image, its queries and keys make the pattern, and no pattern
    is computed. In a joint attention the text has queries and keys, too, which stay.

    Args:
        model: The model.
        names: Patterns.
        steps: At which steps.
    """
    sites = []
    for name in names:
        point, at = model.points[name], {"branch": "cond", "steps": list(steps)}
        if point.sequences["key"] == point.sequences["query"] == ("img",):
            stem = name.removesuffix("hook_pattern")
            sites += [Site(f"{stem}img.{one}", **at) for one in ("hook_q", "hook_k")]
        else:
            sites.append(Site(name, query="img", key="img", **at))
    return sites
