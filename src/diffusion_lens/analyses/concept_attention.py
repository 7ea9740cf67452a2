"""ConceptAttention: where in an image its model sees a concept, by concept-token streams.

Source: ConceptAttention, arXiv 2502.04320, sections 4 and 5, and its released ports.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, Site
from diffusion_lens.errors import ConceptError, closest

CITATION = "Helbling et al., ConceptAttention, ICML 2025, arXiv 2502.04320"
SPACES = {
    "z": ("attn.concept.hook_z", "attn.img.hook_z"),
    "attn_out": ("concept.hook_attn_out", "img.hook_attn_out"),
    "value": ("attn.concept.hook_v", "attn.img.hook_v"),
    "query-key": ("attn.concept.hook_q", "attn.img.hook_k"),
    "query-query": ("attn.concept.hook_q_pre_rope", "attn.img.hook_q_pre_rope"),
}
"""For each space the points of concepts and image whose vectors are multiplied, heads joined."""

SOFTMAX = {"concepts": 1, "patches": 2, "nothing": None}


@dataclass(frozen=True)
class Preset:
    """One published way of computing the maps.

    Attributes:
        space: Which vectors of concepts and image are multiplied; a key of `SPACES`.
        softmax_over: `"concepts"`, `"patches"` or `"nothing"`.
        tokens: `"all"` tokens of each concept, or the `"first"`.
        pooled: As for `HookedDiffusion.concept_streams`.
        last_blocks: How many double blocks, counted from the last; all where there are fewer.
        max_sequence_length: Padded length of a concept, or None for the pipeline's default.
    """

    space: str = "z"
    softmax_over: str = "concepts"
    tokens: str = "first"
    pooled: str | Tensor | None = None
    last_blocks: int | None = 10
    max_sequence_length: int | None = None


PRESETS = {
    "paper": Preset(),
    "flux-release": Preset(pooled="zeros", last_blocks=4),
    "flux-diffusers": Preset(
        space="attn_out",
        softmax_over="patches",
        pooled="concepts",
        last_blocks=None,
        max_sequence_length=64,
    ),
}
"""`paper` is the method of the paper (its last ten blocks) and means the same in every family.
`flux-release` is what the authors' Flux code does by default (blocks 15 to 18 of 19).
`flux-diffusers` is their diffusers pipeline: vectors after two different output projections,
softmax over patches where its comment says concepts, modulation by the pooled embedding of all
concepts, concepts padded to 64 tokens."""


@dataclass(frozen=True)
class ConceptMaps:
    """Saliency of each concept at each image token.

    Attributes:
        maps: Its values; unitless. After a softmax over concepts they lie in [0, 1] and sum to 1
            over concepts, so that one map cannot be read without the others: without a fitting
            concept the nearest wrong one gets the weight.
        axes: Names of the axes: batch, (step), (block), concept, height, width.
        concepts: The concepts.
        steps: The steps, as counted by the scheduler.
        blocks: The blocks.
        made_by: What was run and how.
        citation: What to cite.
    """

    maps: Tensor
    axes: tuple[str, ...]
    concepts: tuple[str, ...]
    steps: tuple[int, ...]
    blocks: tuple[int, ...]
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    def of(self, concept: str) -> Tensor:
        """The maps of one concept; the concept axis is dropped.

        Raises:
            ConceptError: If it is none of the concepts.
        """
        if concept not in self.concepts:
            near = closest(concept, self.concepts)
            hint = f" Closest: {near[0]!r}." if near else ""
            raise ConceptError(f"no map of {concept!r}; there are {list(self.concepts)}.{hint}")
        return self.maps.select(self.axes.index("concept"), self.concepts.index(concept))

    def segment(self) -> Tensor:
        """At each image token the number of the concept with the largest value."""
        return self.maps.argmax(self.axes.index("concept"))

    def save(self, folder: str | Path) -> Path:
        """Write a tensor file and a json file into a folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_file({"maps": self.maps.contiguous()}, path / "maps.safetensors")
        about = {name: value for name, value in vars(self).items() if name != "maps"}
        (path / "maps.json").write_text(json.dumps(about, default=str), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> ConceptMaps:
        """Read what `save` wrote."""
        path = Path(folder)
        about = json.loads((path / "maps.json").read_text(encoding="utf-8"))
        listed = ("axes", "concepts", "steps", "blocks")
        about |= {name: tuple(about[name]) for name in listed}
        return cls(maps=load_file(path / "maps.safetensors")["maps"], **about)


def concept_scores(
    concepts: Float[Tensor, "batch concept d"],
    image: Float[Tensor, "batch pos d"],
    *,
    softmax_over: str = "concepts",
) -> Float[Tensor, "batch concept pos"]:
    """Dot products of concept and image vectors, normalised.

    Args:
        concepts: One vector for each concept; heads joined, neither scaled nor normalised.
        image: One vector for each image token, in the same space.
        softmax_over: `"concepts"`: which concept is it here; `"patches"`: where is this concept;
            `"nothing"`: the products themselves.

    Returns:
        In [0, 1] after a softmax, summing to 1 over the axis that it went over.

    Raises:
        ConceptError: If `softmax_over` is unknown.

    Source: ConceptAttention, arXiv 2502.04320, equation 11; their $o_c$ is `concepts`, their $o_x$
    is `image`.
    """
    _refuse_unknown("softmax_over", softmax_over, SOFTMAX)
    products = concepts.float() @ image.float().mT
    dim = SOFTMAX[softmax_over]
    return products if dim is None else products.softmax(dim)


class ScoreCollector:
    """Two hooks that add up the scores of a block as soon as its concepts have been through.

    Args:
        merge: From rows of the concept stream to one vector for each concept.
        softmax_over: As for `concept_scores`.
        keep: `"step"`, `"block"`, both or none: what to keep apart; the mean goes over the rest.
    """

    def __init__(self, merge: Any, *, softmax_over: str, keep: Sequence[str] = ()) -> None:
        """Start from nothing."""
        self.merge = merge
        self.softmax_over = softmax_over
        self.keep = tuple(keep)
        self.image: Tensor | None = None
        self.sums: dict[tuple[int | None, int | None], tuple[Tensor, int]] = {}
        self.steps: dict[int, None] = {}
        self.blocks: dict[int, None] = {}
        self.grid: tuple[int, ...] = ()

    def on_image(self, activation: Tensor, _hook: HookContext) -> None:
        """Keep the image's vectors until the concepts of the same block come."""
        self.image = activation.flatten(2)

    on_image.read_only = True  # type: ignore[attr-defined]

    def on_concepts(self, activation: Tensor, hook: HookContext) -> None:
        """Score a block."""
        assert self.image is not None
        vectors = self.merge(activation.flatten(2))
        scores = concept_scores(vectors, self.image, softmax_over=self.softmax_over)
        self.image = None
        self.steps[hook.step], self.blocks[hook.layer()], self.grid = None, None, hook.grid
        key = (
            hook.step if "step" in self.keep else None,
            hook.layer() if "block" in self.keep else None,
        )
        total, count = self.sums.get(key, (torch.zeros_like(scores), 0))
        self.sums[key] = (total + scores.detach(), count + 1)

    on_concepts.read_only = True  # type: ignore[attr-defined]

    def result(self) -> Tensor:
        """Means over what is not kept; axes batch, (step), (block), concept, height, width."""
        blocks = sorted({block for _, block in self.sums}, key=lambda block: block or 0)
        steps = sorted({step for step, _ in self.sums}, key=lambda step: step or 0)
        means = {key: total / count for key, (total, count) in self.sums.items()}
        rows = [torch.stack([means[step, block] for block in blocks], 1) for step in steps]
        maps = torch.stack(rows, 1).unflatten(-1, self.grid)
        if "block" not in self.keep:
            maps = maps.squeeze(2)
        return maps if "step" in self.keep else maps.squeeze(1)

    def __repr__(self) -> str:
        """As a report shows it."""
        return f"ScoreCollector(softmax_over={self.softmax_over!r}, keep={self.keep})"


def concept_attention(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    concepts: Sequence[str] | Tensor,
    preset: str | Preset = "paper",
    blocks: Sequence[int] | None = None,
    steps: Any = None,
    keep: Sequence[str] = (),
    branch: str = "cond",
    attend: Sequence[str] = ("concepts", "image"),
    image: Any = None,
    noise_level: float | None = None,
    num_samples: int = 1,
    seed: int = 0,
    choices: dict[str, Any] | None = None,
    **settings: Any,
) -> ConceptMaps:
    """Saliency maps of concepts in the images that a model makes, or in a given image.

    The concepts need not be in the prompt. Similar concepts share their weight, and where nothing
    fits the nearest concept gets it: give a background concept or two.

    Args:
        model: A Flux or SD3 model.
        prompts: A prompt, several, or a `Run`; for a given image its caption, or `""`.
        concepts: Words, phrases, or embeddings with axes batch, concept, d_text.
        preset: Which published way; a name in `PRESETS`, or a `Preset`.
        blocks: Double blocks to average over, in place of the preset's.
        steps: Steps to average over; None for all.
        keep: `"step"`, `"block"` or both, to keep these apart.
        branch: Guidance branch.
        attend: What concepts attend to, as for `concept_streams`.
        image: A real image, in place of a generated one; it is noised and denoised once.
        noise_level: How far to noise it, `timestep / num_train_timesteps`; 0.5 by default.
        num_samples: Noise samples to average over.
        seed: Seed of the noise; further samples count up from it.
        choices: Fields of the preset to change, such as `{"space": "value"}`.
        **settings: Arguments of the pipeline's own call.

    Returns:
        Maps with axes batch, concept, height, width in image tokens.

    Raises:
        ConceptError: On bad concepts, and on an unknown preset, space or choice.

    Source: ConceptAttention, arXiv 2502.04320, section 4. Differs: image queries are not computed a
    second time, which changes no value.
    """
    chosen = replace(_preset(preset), **(choices or {}))
    _refuse_unknown("space", chosen.space, SPACES)
    _refuse_unknown("softmax_over", chosen.softmax_over, SOFTMAX)
    for one in keep:
        _refuse_unknown("keep", one, ("step", "block"))
    if image is None and (noise_level is not None or num_samples != 1):
        raise ConceptError("noise_level= and num_samples= belong to a given image; give image=")
    with model.concept_streams(
        concepts,
        tokens=chosen.tokens,
        pooled=chosen.pooled,
        attend=attend,
        blocks=blocks,
        max_sequence_length=chosen.max_sequence_length,
    ) as streams:
        used = streams.blocks
        if blocks is None and chosen.last_blocks is not None:
            used = used[-chosen.last_blocks :]
        collector = ScoreCollector(
            streams.merge, softmax_over=chosen.softmax_over, keep=tuple(keep)
        )
        hooks = []
        for block in used:
            for name, hook in zip(
                SPACES[chosen.space], (collector.on_concepts, collector.on_image), strict=True
            ):
                hooks.append((Site(f"blocks.{block}.{name}", steps=steps, branch=branch), hook))
        if image is None:
            out = model.run_with_hooks(prompts, seed=seed, fwd_hooks=hooks, **settings)
            made_by = out.made_by.as_dict()
        else:
            level = 0.5 if noise_level is None else noise_level
            size = {name: settings.get(name) for name in ("height", "width")}
            latents = model.encode_image(image, **size)
            with model.hooks(hooks):
                for sample in range(seed, seed + num_samples):
                    noised = model.add_noise(latents, noise_level=level, seed=sample)
                    model.denoise(noised, prompt=prompts, noise_level=level, **settings)
            made_by = {"prompts": repr(prompts), "noise_level": level, "num_samples": num_samples}
        names = streams.names
    axes = ("batch", *(axis for axis in ("step", "block") if axis in keep))
    return ConceptMaps(
        maps=collector.result(),
        axes=(*axes, "concept", "height", "width"),
        concepts=names,
        steps=tuple(collector.steps),
        blocks=tuple(collector.blocks),
        made_by={**made_by, "preset": repr(chosen), "attend": list(attend), "branch": branch},
    )


def _preset(preset: str | Preset) -> Preset:
    if isinstance(preset, Preset):
        return preset
    _refuse_unknown("preset", preset, PRESETS)
    return PRESETS[preset]


def _refuse_unknown(argument: str, given: str, valid: Any) -> None:
    if given not in valid:
        near = closest(given, valid)
        hint = f" Closest: {near[0]!r}." if near else ""
        raise ConceptError(f"{argument}={given!r} is none of {list(valid)}.{hint}")
