"""Attention maps of words: DAAM, selective aggregation, and joint attention.

Source: What the DAAM: Interpreting Stable Diffusion Using Cross Attention, Tang et al., ACL 2023,
arXiv 2210.04885, section 2, and its released code; selective aggregation of attention maps, arXiv
2604.05906.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.attention_maps.collecting import AXES, Aggregation, PatternSums
from diffusion_lens.analyses.attention_maps.foreign import foreign_hooks
from diffusion_lens.analyses.attention_maps.result import AttentionMaps
from diffusion_lens.analyses.attention_maps.selecting import (
    Chosen,
    HeadChoice,
    choose,
    positions_of,
    tokens_of,
)
from diffusion_lens.authoring import DEFAULT_SEED, fitted_size
from diffusion_lens.border import Amount, PipelineSetting, public
from diffusion_lens.errors import RunError, refuse_unknown

UPSAMPLE = ("bicubic", "bilinear", "nearest")
CLAMP = ("each", "mean")
AGGREGATE = ("mean", "sum")


@public
@dataclass(frozen=True)
class Preset:
    """One way of putting patterns together.

    Attributes:
        aggregate: `"mean"` or `"sum"` over steps; heads and blocks are always averaged.
        clamp: What is cut at 0 after resizing, since bicubic interpolation undershoots: `"each"`
            head's map, or their `"mean"`.
        upsample: Mode of interpolation.
        middle: Whether U-Net blocks at the bottleneck take part, and those whose maps are an
            eighth of the finest ones.
    """

    aggregate: str = "mean"
    clamp: str = "mean"
    upsample: str = "bicubic"
    middle: bool = True


PRESETS = {"default": Preset(), "daam": Preset(aggregate="sum", clamp="each", middle=False)}
"""`default` takes every head of every block and needs one sum for each resolution. `daam` is the
published tool: sums over steps; every head's map resized and clamped, then averaged; no bottleneck
and no maps of an eighth of the output, which at the models' own sizes is 64 x 64 (or 96 x 96)."""


@public
def attention_maps(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run | None,
    *,
    words: str | int | Sequence[str | int] | None = None,
    foreign: str | Sequence[str] = (),
    heads: HeadChoice | None = None,
    blocks: Iterable[int] | int | None = None,
    steps: Any = None,
    branch: str | None = "cond",
    aggregate: str | None = None,
    upsample: str | None = None,
    clamp: str | None = None,
    preset: str | Preset | None = None,
    keep: str | Sequence[str] = (),
    size: int | Sequence[int] | None = None,
    foreign_among: str = "prompt",
    image: Any = None,
    noise_level: float | None = None,
    num_samples: Amount = 1,
    seed: int | Sequence[int] | None = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> AttentionMaps:
    """How much each place of an image attends to each word, over heads, blocks and steps.

    Large values say that the image reads the word there, not that the word's object is drawn there:
    a word can be read where its object is kept away, and start tokens collect attention that says
    nothing. Heads differ; `heads=` makes maps of those that matter for a concept (selective
    aggregation).

    Args:
        model: Any model whose image queries read text: U-Nets, and joint attention (Flux, SD3),
            where a pattern is the image-by-text part of the softmax over the whole sequence.
        prompts: A prompt, several, or a `Run`; for a given image its caption.
        words: Words or phrases of the prompts, or positions in the text stream; None for every
            token. Joint attention computes only the columns that are asked for.
        foreign: Words that need not be in the prompt; see the module `foreign` for their keys. In
            Flux and SD3 only blocks that carry concept streams see them; then no other block takes
            part, so that maps of all words compare.
        heads: (block, head) pairs, as `relevance.top(concept, fraction=0.25)` gives them; a mapping
            from pairs to weights; indices, the same in every block; None for all. Heads count from
            0, and negative ones do not exist.
        blocks: Only these blocks; negative ones count from the last.
        steps: Only these steps, counted from 0; None for all. A given image has no steps.
        branch: One guidance branch. `"uncond"` reads the negative prompt.
        aggregate: `"mean"` or `"sum"` over steps.
        upsample: `"bicubic"`, `"bilinear"` or `"nearest"`.
        clamp: `"each"` or `"mean"`; see `Preset`.
        preset: A name in `PRESETS` or a `Preset`, whose values the three arguments above replace.
        keep: `"step"`, `"block"` or `"head"`, or several, to keep these apart; the head axis counts
            (block, head) pairs.
        size: Height and width of the maps; None for the finest grid of tokens.
        foreign_among: What foreign words compete with: `"prompt"`, each alone appended to the keys
            that are there; or `"foreign"`, all foreign words among themselves.
        image: A real image in place of a generated one; it is encoded, noised and denoised once. It
            keeps its size, as far as patches allow, unless the settings give `height` and `width`.
        noise_level: How far to noise it, `timestep / num_train_timesteps`; 0.5 by default.
        num_samples: Noise samples to average over (or to add up, as `aggregate` says).
        seed: Seed of the noise; further samples count up from it.
        **settings: Arguments of the pipeline's own call.

    Returns:
        Maps with axes batch, (step), (block or head), token, (frame), height, width.

    Raises:
        WordError: If a word is in none of the prompts.
        SiteError: If a block, head or branch does not exist, or nothing is selected.
        RunError: On an unknown preset or choice, and where arguments contradict each other.

    Source: DAAM, arXiv 2210.04885, section 2: $D_k$ is `maps[:, k]` with `preset="daam"`, the mean
    over heads and layers of bicubic($F_t$ summed over steps), clamped at 0. Differs: sizes need not
    be square; patterns are added up before they are resized, which is the same since resizing is
    linear up to the clamp. Selective aggregation, arXiv 2604.05906: the same over the heads with
    the largest relevance; whether to take in the bottleneck is not known of it.
    """
    chosen_preset = _preset(preset, aggregate=aggregate, upsample=upsample, clamp=clamp)
    kept = _kept(keep)
    run = Run.of(prompts, seed=seed, settings=settings)
    _refuse_contradictions(image, noise_level, num_samples, steps)
    size = _size(size)
    leave_out = () if chosen_preset.middle else _middle(model)
    chosen = choose(model, heads=heads, blocks=blocks, leave_out=leave_out)
    tokens = tokens_of(model, run, branch)
    asked = [words] if isinstance(words, str | int) else words
    others = [foreign] if isinstance(foreign, str) else list(foreign)
    positions = positions_of(tokens, asked) if asked is None or len(asked) or not others else ()
    aggregation = Aggregation(
        keep=kept,
        weights=chosen.weights,
        apart=_apart(chosen, chosen_preset, size),
        over_steps=chosen_preset.aggregate,
        upsample=chosen_preset.upsample,
    )
    selectors = {"steps": steps, "branch": branch}
    sums, hooks = PatternSums(aggregation), []
    with contextlib.ExitStack() as stack:
        extra = None
        if others:
            extra = stack.enter_context(
                foreign_hooks(
                    model,
                    others,
                    chosen,
                    aggregation,
                    among=foreign_among,
                    reference=positions_of(tokens, None) or (),
                    run=run,
                    **selectors,
                )
            )
            chosen, hooks = extra.chosen, extra.hooks
        if positions != ():
            key = "txt" if positions is None else ("txt", list(positions))
            hooks = [(chosen.site(key=key, **selectors), sums), *hooks]
        pictures, made_by = _executed(
            model, run, hooks, image=image, level=noise_level, samples=num_samples
        )
    rows = {} if extra is None else extra.rows
    parts = [sums] if extra is None else [sums, extra.sums]
    parts = [one for one in parts if one.steps]
    found = [one.result(size) for one in parts]
    source = parts[0]
    axes = _axes(kept, source)
    count = found[0].shape[axes.index("token")] if sums.steps else 0
    return AttentionMaps(
        maps=torch.cat(found, axes.index("token")) if len(found) > 1 else found[0],
        axes=axes,
        positions=tuple(range(count)) if positions is None else positions,
        foreign={
            word: tuple(range(count + some.start, count + some.stop)) for word, some in rows.items()
        },
        prompts=tokens,
        steps=tuple(sorted(source.steps)),
        heads=tuple(source.pairs),
        blocks=tuple(sorted(source.grids)),
        images=pictures,
        made_by={**made_by, "preset": repr(chosen_preset), "branch": branch, "heads": repr(heads)},
    )


def _executed(
    model: HookedDiffusion,
    run: Run,
    hooks: Sequence[Any],
    *,
    image: Any,
    level: float | None,
    samples: int,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Generate, or denoise a given image once for each noise sample; pictures and what was run."""
    if image is None:
        out = model.run_with_hooks(run, fwd_hooks=hooks)
        videos = [_pictures(frames) for frames in ([] if out.frames is None else out.frames)]
        return tuple(filter(None, videos)) or _pictures(out.images), out.made_by.as_dict()
    level = 0.5 if level is None else level
    asked = run.settings.get
    height, width = fitted_size(model, image, height=asked("height"), width=asked("width"))
    run = run.with_(height=height, width=width)
    latents = model.encode_image(image, height=height, width=width)
    if len(latents) == 1 and run.samples > 1:
        latents = latents.expand(run.samples, *latents.shape[1:]).contiguous()
    with model.hooks(hooks):
        for sample in range(samples):
            seeds = [one + sample for one in run.seeds()]
            noised = model.add_noise(latents, noise_level=level, seed=seeds)
            model.denoise(noised, prompt=run, noise_level=level)
    made_by = {"run": repr(run), "noise_level": level, "num_samples": samples}
    given = image if isinstance(image, list | tuple) else [image]
    return _pictures(list(given) * (len(latents) // len(given))), made_by


def _pictures(images: Any) -> tuple[Any, ...]:
    """Those that are pictures; arrays and tensors of other output types are left out."""
    listed = images if isinstance(images, list | tuple) else []
    return tuple(one for one in listed if isinstance(one, Image.Image))


def _axes(keep: frozenset[str], sums: PatternSums) -> tuple[str, ...]:
    inner = [axis for axis in AXES if axis in keep]
    if "head" in keep and "block" in keep:
        inner.remove("block")
    grid = next(iter(sums.grids.values()))
    return ("batch", *inner, "token", *(("frame",) if len(grid) == 3 else ()), "height", "width")


def _middle(model: HookedDiffusion) -> list[int]:
    """Blocks of the bottleneck, and those whose maps are an eighth of the finest."""
    points = [model.points[str(site.name)] for site in model.text_pattern_sites()]
    finest = min((point.level for point in points), default=0)
    return [
        point.block
        for point in points
        if point.block is not None
        and (point.module.startswith("mid_block") or point.level == finest + 3)
    ]


def _apart(chosen: Chosen, preset: Preset, size: Any) -> frozenset[int]:
    """Blocks whose heads' maps are resized one by one; the finest need no resizing."""
    if preset.clamp == "mean" or preset.upsample != "bicubic":
        return frozenset()
    finest = min(chosen.levels.values())
    return frozenset(
        block for block, level in chosen.levels.items() if level > finest or size is not None
    )


def _refuse_contradictions(image: Any, level: Any, samples: int, steps: Any) -> None:
    if image is None and (level is not None or samples != 1):
        raise RunError("noise_level= and num_samples= belong to a given image; give image=")
    if image is not None and steps is not None:
        raise RunError(
            "a given image is denoised once, so it has no steps=; noise_level= says how far it is "
            "noised"
        )
    if samples < 1:
        raise RunError(f"num_samples={samples} must be 1 or more")


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    given = tuple(size) if isinstance(size, Sequence) else (size,)
    if len(given) != 2 or not all(isinstance(one, int) and one > 0 for one in given):
        raise RunError(f"size={size!r} must be a height and a width, such as size=(64, 64)")
    return given


def _kept(keep: str | Sequence[str]) -> frozenset[str]:
    given = [keep] if isinstance(keep, str) else list(keep)
    for one in given:
        refuse_unknown("keep", one, AXES, error=RunError)
    return frozenset(given)


def _preset(preset: str | Preset | None, **choices: str | None) -> Preset:
    name = preset if preset is not None else "default"
    if isinstance(name, str):
        refuse_unknown("preset", name, PRESETS, error=RunError)
        name = PRESETS[name]
    found = replace(name, **{key: value for key, value in choices.items() if value is not None})
    refuse_unknown("aggregate", found.aggregate, AGGREGATE, error=RunError)
    refuse_unknown("upsample", found.upsample, UPSAMPLE, error=RunError)
    refuse_unknown("clamp", found.clamp, CLAMP, error=RunError)
    return found
