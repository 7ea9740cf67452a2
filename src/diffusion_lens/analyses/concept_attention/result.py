"""The result of ConceptAttention: maps, what they lie over, and ways of looking at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffusion_lens.analyses.concept_attention.panels import (
    as_images,
    as_panels,
    background_of,
    panel_title,
)
from diffusion_lens.analyses.map_gallery import map_gallery
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.border import public
from diffusion_lens.border.pictures import Pictures
from diffusion_lens.errors import ConceptError, ResultError, closest, listing
from diffusion_lens.showing.one_line import one_line, prompt_of

CITATION = "Helbling et al., ConceptAttention, ICML 2025, arXiv 2502.04320"


@dataclass(frozen=True)
class ConceptMaps(Saved):
    """Saliency of each concept at each image token.

    Attributes:
        maps: Its values; unitless. After a softmax over concepts they lie in [0, 1] and sum to 1
            over concepts, so that one map cannot be read without the others: without a fitting
            concept the nearest wrong one gets the weight.
        axes: Names of the axes: batch, (step), (block), concept, (frame), height, width.
        concepts: The concepts.
        steps: The steps, as counted by the scheduler.
        blocks: The blocks.
        images: What the maps lie over: one image (or a sequence of frames) for each entry of the
            batch; None where the run gave latents only.
        made_by: What was run and how.
        citation: What to cite.
    """

    maps: Tensor
    axes: tuple[str, ...]
    concepts: tuple[str, ...]
    steps: tuple[int, ...]
    blocks: tuple[int, ...]
    images: tuple[Any, ...] | None = field(default=None, repr=False)
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    @public
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
        """At each image token the number of the concept with the largest value.

        There is no class for "none of them": name what else is in the image, background included.
        """
        return self.maps.argmax(self.axes.index("concept"))

    @public
    def overlay(self, concept: str, *, image: Pictures | None = None, **style: Any) -> Any:
        """A plotly figure: the map of a concept over each image, block and frame that was kept.

        Args:
            concept: One of the concepts.
            image: What to show it over, in place of `images`: one image, or one for each entry of
                the batch (each a sequence of frames for a video).
            **style: Arguments of `viz.overlays`, such as `alpha=`.

        Raises:
            ConceptError: If it is none of the concepts.
            ResultError: If there are no images to show it over.
        """
        axes = tuple(axis for axis in self.axes if axis != "concept")
        return self._figure(self.of(concept), axes, image, style)

    @public
    def plot(self, sample: int = 0, *, image: Pictures | None = None, **style: Any) -> Any:
        """A plotly figure: the maps of all concepts over one image, blocks averaged.

        Args:
            sample: Which entry of the batch.
            image: What to show them over, in place of its entry of `images`.
            **style: Arguments of `viz.overlays`.

        Raises:
            ResultError: If there is no image to show them over, or no such sample.
        """
        if not 0 <= sample < len(self.maps):
            raise ResultError(
                f"sample {sample} does not exist: there are {len(self.maps)}, counted from 0"
            )
        maps, axes = self.maps[sample : sample + 1], self.axes
        if "block" in axes:
            maps = maps.mean(axes.index("block"))
            axes = tuple(axis for axis in axes if axis != "block")
        if image is None and self.images is not None:
            image = self.images[sample : sample + 1]
        return self._figure(maps, axes, image, style)

    def _figure(
        self, maps: Tensor, axes: Sequence[str], image: Any, style: Mapping[str, Any]
    ) -> Any:
        from diffusion_lens import viz

        shown = self.images if image is None else image
        if shown is None:
            raise ResultError(
                "the run gave no images to show the maps over (it had output_type='latent'); give "
                "image=, or run it with output_type='pil'"
            )
        sizes = dict(zip(axes, maps.shape, strict=True))
        images = as_images(shown, sizes["batch"])
        names = {axis: range(size) for axis, size in sizes.items()}
        names |= {"concept": self.concepts, "block": self.blocks}
        panels, places = as_panels(maps, axes)
        return viz.overlays(
            [
                background_of(images[place["batch"]], place.get("frame"), sizes.get("frame", 1))
                for place in places
            ],
            panels,
            titles=[panel_title(place, names) for place in places],
            steps=list(self.steps) if "step" in axes else None,
            images_over="panel",
            **{**self._said(), **style},
        )

    def _said(self) -> dict[str, Any]:
        """What the values mean, for a figure."""
        if "softmax_over='concepts'" in str(self.made_by.get("preset", "")):
            note = "Weight of each concept at each place; all concepts sum to 1 there."
            return {"note": note, "value_name": "weight", "zmin": 0.0, "zmax": 1.0}
        note = "How well each concept fits each place, unitless: compare places and concepts."
        return {"note": note, "value_name": "fit"}

    def __repr__(self) -> str:
        """Prompt, concepts, axes and sizes in one line."""
        sizes = zip(self.axes, self.maps.shape, strict=True)
        return one_line(
            self,
            prompt_of(self.made_by),
            f"concepts {listing(self.concepts)}",
            *(f"{axis} {size}" for axis, size in sizes if axis != "concept"),
            made_by=self.made_by,
            look=(".of()", ".segment()", ".plot()"),
        )

    def _repr_html_(self) -> str | None:
        """The first image and its maps, mean over what was kept apart."""
        maps = [(concept, self.of(concept)[0]) for concept in self.concepts]
        return map_gallery(self.images, maps, line=repr(self))
