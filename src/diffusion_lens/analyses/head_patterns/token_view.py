"""Patterns between the tokens of one stream, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, Site
from diffusion_lens.analyses.attention_maps.selecting import tokens_of
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import PipelineSetting, public
from diffusion_lens.errors import SiteError


@public
def token_view(
    model: HookedDiffusion,
    prompt: str | Run,
    *,
    block: int,
    step: int = 0,
    heads: Sequence[int] | None = None,
    stream: str = "txt",
    branch: str | None = "cond",
    seed: int = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> Any:
    """Patterns of one block between the tokens of a stream, to explore in a notebook.

    Attention here looks both ways: nothing is hidden as causal. Rows show the attention that stays
    within the stream (without padding), so they need not sum to 1.

    Args:
        model: A model with self- or joint attention.
        prompt: One prompt.
        block: Which block.
        step: Which step.
        heads: Which heads; None for all.
        stream: `"txt"` (joint attention), or `"img"`, whose tokens are called row,column.
        branch: Guidance branch.
        seed: As for a run.
        **settings: Arguments of the pipeline's own call.

    Returns:
        What `viz.token_patterns` draws.

    Raises:
        SiteError: If the block has no such attention.
        FigureError: If there are too many tokens to show.
    """
    from diffusion_lens import viz

    name = f"blocks.{block}.attn.hook_pattern"
    (point,) = (model.points[one] for one in model.hook_names(name))
    if stream not in point.sequences["query"]:
        raise SiteError(
            f"stream={stream!r} asks nothing in {name}, whose queries are of "
            f"{list(point.sequences['query'])}"
        )
    run = Run.of(prompt, seed=seed, settings=settings)
    tokens = tokens_of(model, run, branch)
    part: Any = stream
    if stream == "txt" and tokens:
        part = (stream, list(tokens[0].positions))
    site = Site(name, heads=heads, query=part, key=part, steps=[step], branch=branch)
    kept: list[Tensor] = []
    grids: list[tuple[int, ...]] = []

    def keep(activation: Tensor, hook: HookContext) -> None:
        kept.append(activation[0].detach().clone())
        grids.append(hook.grid)

    keep.read_only = True  # type: ignore[attr-defined]
    model.run_with_hooks(run, fwd_hooks=[(site, keep)])
    if stream == "txt" and tokens:
        labels = [tokens[0].label(at) or f"[{at}]" for at in tokens[0].positions]
    else:
        width = grids[0][-1]
        labels = [f"{at // width},{at % width}" for at in range(kept[0].shape[-1])]
    numbers = list(heads) if heads is not None else list(range(len(kept[0])))
    return viz.token_patterns(labels, kept[0], heads=[f"head {one}" for one in numbers])
