"""ConceptAttention: where in an image its model sees a concept, by concept-token streams.

Source: ConceptAttention, arXiv 2502.04320, sections 4 and 5, and its released ports.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from diffusion_lens.analyses.concept_attention.maps import ConceptMaps
from diffusion_lens.analyses.concept_attention.presets import (
    Preset,
    preset_of,
    refuse_unknown,
)
from diffusion_lens.errors import ConceptError
from diffusion_lens.hooked_diffusion.streams import ConceptStreams

NOISE_LEVEL = 0.5
"""How far the paper noises a real image."""


def concept_attention(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    concepts: str | Sequence[str] | Tensor,
    preset: str | Preset = "paper",
    space: str | None = None,
    softmax_over: str | None = None,
    blocks: Sequence[int] | None = None,
    steps: Any = None,
    keep: Sequence[str] = (),
    frames: str = "keep",
    branch: str = "cond",
    attend: str | Sequence[str] = ("concepts", "image"),
    image: Any = None,
    noise_level: float | None = None,
    num_samples: int = 1,
    seed: int | Sequence[int] | None = 0,
    **settings: Any,
) -> ConceptMaps:
    """Saliency maps of concepts in the images that a model makes, or in a given image.

    The concepts need not be in the prompt. Similar concepts share their weight, and where nothing
    fits the nearest concept gets it: give a background concept or two. The image that the model
    makes is bit for bit the one that it makes without concepts, and memory does not grow with
    steps.

    Args:
        model: A Flux, SD3 or CogVideoX model.
        prompts: A prompt, several, or a `Run`; for a given image its caption, or `""`.
        concepts: Words, phrases, or embeddings with axes batch, concept, d_text.
        preset: Which published way; a name in `PRESETS`, or a `Preset`.
        space: Which vectors, in place of the preset's: `"z"`, `"attn_out"`, `"value"`,
            `"query-key"` or `"query-query"`.
        softmax_over: `"concepts"`, `"patches"` or `"nothing"`, in place of the preset's.
        blocks: Blocks to average over, in place of the preset's.
        steps: Steps to average over; None for all.
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
            resize it.

    Returns:
        Maps with axes batch, concept, height, width in image tokens (video: batch, concept, frame,
        height, width), and the images that they lie over.

    Raises:
        ConceptError: On bad concepts, blocks or images, and on an unknown preset or choice.
        UnsupportedModelError: If the model has no concept streams, such as a UNet.
        HookNeverFiredError: If a step does not exist.

    Source: ConceptAttention, arXiv 2502.04320, section 4. Differs: image queries are not computed a
    second time, which changes no value; a concept of several tokens is the mean of all of them,
    where the release takes the first (`flux-release` does, too).
    """
    named = {"space": space, "softmax_over": softmax_over}
    chosen = replace(preset_of(preset), **{name: one for name, one in named.items() if one})
    _refuse_bad(chosen, keep, frames)
    if image is None:
        _refuse_of_image(noise_level, num_samples)
    with model.concept_streams(
        concepts,
        tokens=chosen.tokens,
        pooled=chosen.pooled,
        attend=attend,
        blocks=blocks,
        max_sequence_length=chosen.max_sequence_length,
        slots=chosen.slots,
        image_queries=chosen.image_vectors == "concepts",
    ) as streams:
        pairs = VectorPairs(chosen, streams, _sums(chosen, len(streams.names), keep))
        used = _used_blocks(streams, chosen, blocks)
        hooks = pairs.hooks(used, steps=steps, branch=branch)
        if image is None:
            shown, made_by = _generated(model, prompts, hooks, seed, settings)
        else:
            seeds = _seeds_of_noise(steps, seed, num_samples)
            given, settings = _taken(model, image, settings)
            if chosen.blank_caption:
                hooks.append((Site("hook_pooled_text_emb", branch=branch), _zeros))
            level = NOISE_LEVEL if noise_level is None else noise_level
            shown, made_by = _over_noise(model, prompts, given, hooks, level, seeds, settings)
    return _result(
        pairs,
        keep=keep,
        frames=frames,
        concepts=streams.names,
        images=shown,
        made_by={**made_by, "preset": repr(chosen), "attend": streams.attend, "branch": branch},
    )


def _refuse_bad(chosen: Preset, keep: Sequence[str], frames: str) -> None:
    for one in keep:
        refuse_unknown("keep", one, ("step", "block"))
    refuse_unknown("frames", frames, ("keep", "mean"))
    if chosen.vectors_first and "step" in keep:
        raise ConceptError(
            "this preset averages vectors over steps before it scores them, so there are no maps "
            'of single steps; leave "step" out of keep=, or run it with steps= one at a time'
        )


def _refuse_of_image(noise_level: float | None, num_samples: int) -> None:
    if noise_level is not None or num_samples != 1:
        raise ConceptError("noise_level= and num_samples= belong to a given image; give image=")


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
    return kind(softmax_over=chosen.softmax_over, count=count, keep=keep)


def _used_blocks(
    streams: ConceptStreams, chosen: Preset, blocks: Sequence[int] | None
) -> tuple[int, ...]:
    if blocks is not None or chosen.last_blocks is None:
        return streams.blocks
    return streams.blocks[-chosen.last_blocks :]


def _generated(
    model: HookedDiffusion, prompts: Any, hooks: list, seed: Any, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Run the pipeline; the images that it made, and what made them."""
    out = model.run_with_hooks(prompts, seed=seed, fwd_hooks=hooks, **settings)
    shown = out.images if out.frames is None else out.frames
    if isinstance(shown, Tensor):  # output_type="pt"
        shown = shown.movedim(-3, -1).float().cpu().numpy()
    return None if shown is None else tuple(shown), out.made_by.as_dict()


def _taken(
    model: HookedDiffusion, image: Any, settings: dict[str, Any]
) -> tuple[GivenImage, dict[str, Any]]:
    """The image, and the settings of a run of its size."""
    others = dict(settings)
    if "latents" in others:
        raise ConceptError("latents= and image= exclude each other: an image has its own; drop one")
    asked = {side: others.pop(side, None) for side in ("height", "width")}
    given = take_image(model, image, **asked)
    return given, {**others, "height": given.size[0], "width": given.size[1]}


def _zeros(activation: Tensor, _hook: HookContext) -> Tensor:
    return torch.zeros_like(activation)


def _over_noise(
    model: HookedDiffusion,
    prompts: Any,
    given: GivenImage,
    hooks: list,
    level: float,
    seeds: Sequence[int],
    settings: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Denoise the image once for each noise sample; the image, and what was done with it."""
    with model.hooks(hooks):
        for sample in seeds:
            noised = model.add_noise(given.latents, noise_level=level, seed=sample)
            model.denoise(noised, prompt=prompts, noise_level=level, **settings)
    return given.shown, {
        "run": repr(Run.of(prompts, seed=0, settings=settings)),
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
