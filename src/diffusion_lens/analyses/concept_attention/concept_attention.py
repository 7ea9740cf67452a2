"""ConceptAttention: where in an image its model sees a concept, by concept-token streams.

Source: ConceptAttention, arXiv 2502.04320, sections 4 and 5, and its released ports.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, Site
from diffusion_lens.analyses.concept_attention.collecting import (
    MeanVectors,
    ScoreSums,
    VectorPairs,
)
from diffusion_lens.analyses.concept_attention.given_image import GivenImage, take_image
from diffusion_lens.analyses.concept_attention.presets import (
    SPACES,
    Preset,
    preset_of,
)
from diffusion_lens.analyses.concept_attention.result import ConceptMaps
from diffusion_lens.analyses.edited_images import inference_steps
from diffusion_lens.authoring import DEFAULT_SEED, ENCODING, ConceptStreams
from diffusion_lens.border import Amount, PipelineSetting, public
from diffusion_lens.errors import ConceptError, HookNeverFiredError, listing, refuse_unknown

NOISE_LEVEL = 0.5
"""How far the paper noises a real image."""


@public
def concept_attention(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    concepts: str | Sequence[str] | Tensor,
    preset: str | Preset = "paper",
    space: str | None = None,
    softmax_over: str | None = None,
    blocks: int | Sequence[int] | None = None,
    steps: Any = None,
    keep: str | Sequence[str] = (),
    frames: str = "keep",
    branch: str = "cond",
    attend: str | Sequence[str] = ("concepts", "image"),
    image: Any = None,
    noise_level: float | None = None,
    num_samples: Amount = 1,
    seed: int | Sequence[int] | None = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> ConceptMaps:
    """Saliency maps of concepts in the images that a model makes, or in a given image.

    The concepts need not be in the prompt. Similar concepts share their weight, and where nothing
    fits the nearest concept gets it: give a background concept or two. The image that the model
    makes is bit for bit the one that it makes without concepts, and memory does not grow with
    steps.

    Args:
        model: A model whose text has a stream of its own (Flux, Flux.2, SD3, Qwen-Image, …; the
            page "Families" says which).
        prompts: A prompt, several, or a `Run`; for a given image its caption, or `""`.
        concepts: Words, phrases, or embeddings with axes batch, concept, d_text; two or more, where
            a softmax goes over them.
        preset: Which published way; a name in `PRESETS`, or a `Preset`.
        space: Which vectors, in place of the preset's: `"z"`, `"attn_out"`, `"value"`,
            `"query-key"` or `"query-query"`.
        softmax_over: `"concepts"`, `"patches"` or `"nothing"`, in place of the preset's.
        blocks: Blocks to average over, in place of the preset's. Without it, blocks that lack the
            vectors of the space are left out (`"attn_out"` in the last block of SD3).
        steps: Steps to average over, in place of the preset's; None for those, all as a rule.
        keep: `"step"`, `"block"` or both, to keep these apart.
        frames: `"keep"` the frames of a video apart, or take their `"mean"`.
        branch: Guidance branch.
        attend: What concepts attend to, as for `concept_streams`.
        image: A real image (or several of one size, or the frames of a video), in place of a
            generated one; it is noised and denoised once. Its size is kept, rounded down to what
            the model's patches tile.
        noise_level: How far to noise it, `timestep / num_train_timesteps`; 0.5 by default.
        num_samples: Noise samples to average over.
        seed: Of the run; for a given image of its noise, further samples count up from it.
        **settings: Arguments of the pipeline's own call. For a given image, `height` and `width`
            resize it. Concepts are padded to its `max_sequence_length`, as the prompt is, unless
            the preset has one.

    Returns:
        Maps with axes batch, concept, height, width in image tokens (video: batch, concept, frame,
        height, width), and the images that they lie over.

    Raises:
        ConceptError: On bad concepts, blocks or images, on a softmax over a single concept, and on
            an unknown preset, branch or other choice.
        UnsupportedModelError: If the model has no concept streams, such as a UNet.
        HookNeverFiredError: If a step does not exist.

    Source: ConceptAttention, arXiv 2502.04320, section 4. Differs: image queries are not computed a
    second time, which changes no value; a concept of several tokens is the mean of all of them,
    where the release takes the first (`flux-release` does, too).
    """
    run = Run.of(prompts, seed=seed, settings=settings)
    chosen = preset_of(preset)
    named: dict[str, Any] = {"space": space, "softmax_over": softmax_over}
    if chosen.max_sequence_length is None:
        named["max_sequence_length"] = run.text_length
    chosen = replace(chosen, **{name: one for name, one in named.items() if one is not None})
    keep = (keep,) if isinstance(keep, str) else keep
    blocks = (blocks,) if isinstance(blocks, int) else blocks
    _refuse_bad(chosen, keep, frames, branch)
    if image is None:
        _refuse_of_image(noise_level, num_samples)
        steps = _steps_of(model, run, chosen) if steps is None else steps
    with model.concept_streams(
        concepts,
        tokens=chosen.tokens,
        position=chosen.position,
        pooled=chosen.pooled,
        attend=attend,
        blocks=blocks,
        max_sequence_length=chosen.max_sequence_length,
        slots=chosen.slots,
        image_queries=chosen.image_vectors == "concepts",
        encoder_settings={name: run.settings[name] for name in ENCODING if name in run.settings},
    ) as streams:
        _refuse_lone(chosen, streams.names)
        pairs = VectorPairs(chosen, streams, _sums(chosen, len(streams.names), keep))
        used = _used_blocks(model, streams, chosen, blocks)
        hooks = pairs.hooks(used, steps=steps, branch=branch)
        if image is None:
            shown, made_by = _generated(model, run, hooks)
            _refuse_absent(steps, pairs.steps)
        else:
            seeds = _seeds_of_noise(steps, run.seed, num_samples)
            given, run = _taken(model, image, run)
            if chosen.blank_caption:
                hooks.append((Site("hook_pooled_text_emb", branch=branch), _zeros))
            level = NOISE_LEVEL if noise_level is None else noise_level
            shown, made_by = _over_noise(model, run, given, hooks, level, seeds)
    return _result(
        pairs,
        keep=keep,
        frames=frames,
        concepts=streams.names,
        images=shown,
        made_by={**made_by, "preset": repr(chosen), "attend": streams.attend, "branch": branch},
    )


def _refuse_bad(chosen: Preset, keep: Sequence[str], frames: str, branch: str) -> None:
    for one in keep:
        refuse_unknown("keep", one, ("step", "block"), error=ConceptError)
    refuse_unknown("frames", frames, ("keep", "mean"), error=ConceptError)
    refuse_unknown("branch", branch, ("cond", "uncond", "skip"), error=ConceptError)
    if chosen.vectors_first and "step" in keep:
        raise ConceptError(
            "this preset averages vectors over steps before it scores them, so there are no maps "
            'of single steps; leave "step" out of keep=, or run it with steps= one at a time'
        )


def _refuse_lone(chosen: Preset, names: Sequence[str]) -> None:
    """Refuse a softmax over one concept, unless fillers share it."""
    if len(names) > 1 or chosen.softmax_over != "concepts" or chosen.slots is not None:
        return
    raise ConceptError(
        f"concepts={list(names)}: a softmax over one concept is 1 at every place. Name what else "
        'is in the image, such as "background"; or use softmax_over="patches" (where it is most) '
        'or "nothing" (the products themselves)'
    )


def _refuse_of_image(noise_level: float | None, num_samples: int) -> None:
    if noise_level is not None or num_samples != 1:
        raise ConceptError("noise_level= and num_samples= belong to a given image; give image=")


def _refuse_absent(steps: Any, found: Iterable[int]) -> None:
    """Refuse steps of which only others exist; where none does, no hook fires and the run says so.

    A slice has no end of its own.
    """
    asked = [] if steps is None or isinstance(steps, int | slice) else list(steps)
    absent = sorted(set(asked) - set(found))
    if absent:
        raise HookNeverFiredError(
            f"steps={asked}: steps {listing(absent, most=8)} do not exist in this run, of those "
            f"asked for only {listing(list(found), most=8)}. Steps count from 0"
        )


def _seeds_of_noise(steps: Any, seed: Any, num_samples: int) -> range:
    if steps is not None:
        raise ConceptError(
            "a given image is denoised once, at noise_level=; steps= belongs to generated images"
        )
    if not isinstance(seed, int) or num_samples < 1:
        raise ConceptError(
            f"a given image takes one whole seed and one or more noise samples; got seed={seed!r}, "
            f"num_samples={num_samples!r}"
        )
    return range(seed, seed + num_samples)


def _sums(chosen: Preset, count: int, keep: Sequence[str]) -> ScoreSums | MeanVectors:
    kind = MeanVectors if chosen.vectors_first else ScoreSums
    return kind(chosen, count=count, keep=keep)


def _steps_of(model: HookedDiffusion, run: Run, chosen: Preset) -> range | None:
    """The steps of a generated run that a preset takes; None for all.

    Raises:
        ConceptError: If the run has none of them.
    """
    if chosen.skipped == 0 and chosen.last_step:
        return None
    count = inference_steps(model, run)
    taken = range(int(count * chosen.skipped), count if chosen.last_step else count - 1)
    if not taken:
        raise ConceptError(
            f"this preset leaves out the first {chosen.skipped:.0%} of the steps"
            + ("" if chosen.last_step else " and the last one")
            + f", and nothing is left of {count}; raise num_inference_steps, or give steps="
        )
    return taken


def _used_blocks(
    model: HookedDiffusion, streams: ConceptStreams, chosen: Preset, blocks: Sequence[int] | None
) -> tuple[int, ...]:
    points, (vectors, _) = model.hook_names(), SPACES[chosen.space]
    wanted = streams.blocks
    if blocks is None and chosen.last_blocks is not None:
        wanted = wanted[-chosen.last_blocks :]
    able = tuple(block for block in wanted if f"blocks.{block}.{vectors}" in points)
    lacking = sorted(set(wanted) - set(able))
    if lacking and (blocks is not None or not able):
        raise ConceptError(
            f"block {lacking[0]} has no {vectors!r} with attend={streams.attend}, and "
            f'space={chosen.space!r} needs it; leave the block out of blocks=, or use space="z"'
        )
    return able


def _generated(model: HookedDiffusion, run: Run, hooks: list) -> tuple[Any, dict[str, Any]]:
    """Run the pipeline; the images that it made, and what made them."""
    out = model.run_with_hooks(run, fwd_hooks=hooks)
    shown = out.images if out.frames is None else out.frames
    if isinstance(shown, Tensor):  # output_type="pt"
        shown = shown.movedim(-3, -1).float().cpu().numpy()
    return None if shown is None else tuple(shown), out.made_by.as_dict()


def _taken(model: HookedDiffusion, image: Any, run: Run) -> tuple[GivenImage, Run]:
    """The image, and a run of its size."""
    if "latents" in run.settings:
        raise ConceptError("latents= and image= exclude each other: an image has its own; drop one")
    asked = {side: run.settings.get(side) for side in ("height", "width")}
    given = take_image(model, image, **asked)
    count = len(given.latents)
    if count != run.samples:
        raise ConceptError(
            f"image= has {count} where the captions are {run.samples}; give one caption for each"
        )
    return given, run.with_(height=given.size[0], width=given.size[1])


def _zeros(activation: Tensor, _hook: HookContext) -> Tensor:
    return torch.zeros_like(activation)


def _over_noise(
    model: HookedDiffusion,
    run: Run,
    given: GivenImage,
    hooks: list,
    level: float,
    seeds: Sequence[int],
) -> tuple[Any, dict[str, Any]]:
    """Denoise the image once for each noise sample; the image, and what was done with it."""
    with model.hooks(hooks):
        for sample in seeds:
            noised = model.add_noise(given.latents, noise_level=level, seed=sample)
            model.denoise(noised, prompt=run, noise_level=level)
    return given.shown, {
        "run": repr(run),
        "model": model.name,
        "noise_level": level,
        "seeds": list(seeds),
        "given_size": list(given.given_size),
        "size": list(given.size),
    }


def _result(pairs: VectorPairs, *, keep: Sequence[str], frames: str, **fields: Any) -> ConceptMaps:
    maps = pairs.result()
    video = len(pairs.grid) == 3
    if video and frames == "mean":
        maps, video = maps.mean(-3), False
    kept = tuple(axis for axis in ("step", "block") if axis in keep)
    plane = ("frame", "height", "width") if video else ("height", "width")
    return ConceptMaps(
        maps=maps,
        axes=("batch", *kept, "concept", *plane),
        steps=tuple(pairs.steps),
        blocks=tuple(pairs.blocks),
        **fields,
    )
