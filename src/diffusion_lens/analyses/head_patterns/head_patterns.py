"""What every head attends to: mass on tokens, entropy, distance, how it splits its attention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.attention_maps.selecting import (
    Chosen,
    HeadChoice,
    choose,
    positions_of,
    tokens_of,
)
from diffusion_lens.analyses.head_patterns.result import HeadPatterns
from diffusion_lens.analyses.head_patterns.statistics import VALUES, PatternStatistics
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import PipelineSetting, public
from diffusion_lens.errors import SiteError, listing

QUERIES = 256
"""About how many image tokens are looked at in each block, unless `every` says otherwise."""


@public
def head_patterns(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    names: Any = None,
    words: str | int | Sequence[str | int] | None = None,
    heads: HeadChoice | None = None,
    blocks: Iterable[int] | int | None = None,
    steps: Any = None,
    branch: str | None = "cond",
    every: int | None = None,
    seed: int | Sequence[int] | None = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> HeadPatterns:
    """What the image's tokens attend to, for every head and step.

    Large mass on a start token, or on padding, is where heads rest that have nothing to say.
    Entropy depends on the number of keys: compare heads of blocks with equally many.

    Args:
        model: Any model.
        prompts: A prompt, several, or a `Run`.
        names: Patterns to look at, such as `"blocks.*.attn.hook_pattern"` for a U-Net's
            self-attention; None for those that read the text.
        words: Words or positions whose mass is kept; None for every token of the prompts.
        heads: (block, head) pairs, or indices; None for all.
        blocks: Only these blocks.
        steps: Only these steps, counted from 0.
        branch: Guidance branch.
        every: Every how many image tokens ask; None for as many as keep about `QUERIES` at the
            model's own size. Whole rows are computed for those that ask.
        seed: As for a run.
        **settings: Arguments of the pipeline's own call.

    Returns:
        Numbers with axes batch, step, head.

    Raises:
        SiteError: If nothing is selected, or `names` are no patterns with image queries.
        WordError: If a word is in none of the prompts.
    """
    chosen = choose(model, heads=heads, blocks=blocks, points=_points(model, names))
    run = Run.of(prompts, seed=seed, settings=settings)
    tokens = tokens_of(model, run, branch)
    asked = [words] if isinstance(words, str | int) else words
    positions = positions_of(tokens, asked)
    strides = {block: _stride(model, chosen, block, every) for block in chosen.heads}
    collector = PatternStatistics(strides, positions)
    hooks = [
        (
            Site(
                chosen.names[block],
                heads=some,
                query=("img", slice(None, None, strides[block])),
                steps=steps,
                branch=branch,
            ),
            collector,
        )
        for block, some in chosen.heads.items()
    ]
    out = model.run_with_hooks(run, fwd_hooks=hooks)
    found = {name: collector.table(name) for name in VALUES}
    mass = collector.table("mass")
    count = 0 if mass is None else mass.shape[-1]
    return HeadPatterns(
        mass=mass,
        values={name: value for name, value in found.items() if value is not None},
        heads=tuple(
            (block, head) for block in sorted(collector.heads) for head in collector.heads[block]
        ),
        steps=tuple(sorted({step for step, _ in collector.found})),
        positions=tuple(range(count)) if positions is None else positions,
        prompts=tokens,
        made_by={
            **out.made_by.as_dict(),
            "branch": branch,
            "every": strides,
            "modules": {block: model.points[name].module for block, name in chosen.names.items()},
        },
    )


def _points(model: HookedDiffusion, names: Any) -> list[Any] | None:
    if names is None:
        return None
    found = [model.points[name] for name in model.hook_names(names) if name in model.points]
    fitting = [
        point
        for point in found
        if point.name.endswith("hook_pattern")
        and point.block is not None
        and "img" in point.sequences["query"]
    ]
    if not fitting or len({point.block for point in fitting}) < len(fitting):
        raise SiteError(
            f"names={names!r} matches {listing([point.name for point in found], most=4)}; patterns "
            "with image queries are needed, one for each block, such as "
            "'blocks.*.attn.hook_pattern'"
        )
    return fitting


def _stride(model: HookedDiffusion, chosen: Chosen, block: int, every: int | None) -> int:
    if every is not None:
        if every < 1:
            raise SiteError(f"every={every}: every how many image tokens ask is 1 or more")
        return every
    grid = model.spec.default_grid(model.denoiser, chosen.levels[block])
    # Odd, so that not the same columns ask in every row of a grid of even width.
    found = -(-math.prod(grid) // QUERIES)
    return found + (found > 1 and found % 2 == 0)
