"""What every editing analysis gives: a source image and its edits, and what made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookedDiffusion, Output, Run
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.authoring import call_settings
from diffusion_lens.border import public
from diffusion_lens.errors import ResultError, RunError
from diffusion_lens.showing.gallery import gallery
from diffusion_lens.showing.one_line import counted, one_line, short


@dataclass(frozen=True)
class EditedImages(Saved):
    """A source image and its edits, whatever method made them.

    Attributes:
        source: The source prompt.
        targets: The target prompts.
        images: The source's image, then one for each target; None for `output_type="latent"`.
        latents: Theirs, as the pipeline holds them; axes row, ….
        method: Name of the analysis.
        maps: Where each row attended to its edited words, mean over heads and steps, where it was
            asked for; axes row, height, width.
        made_by: What was run and how.
        citation: What to cite.
    """

    source: str
    targets: tuple[str, ...]
    images: Any
    latents: Float[Tensor, "row ..."]
    method: str
    maps: Float[Tensor, "row height width"] | None = None
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = ""

    @property
    def source_image(self) -> Any:
        """The image of the source prompt."""
        return self._images()[0]

    @property
    def target_images(self) -> list[Any]:
        """The images of the targets."""
        return list(self._images()[1:])

    @property
    def image(self) -> Any:
        """The image of the first target."""
        return self._images()[1]

    @public
    def plot(self, *, captions: Sequence[str] | None = None) -> Any:
        """The images beside each other; the maps below them where they were kept.

        Args:
            captions: Above the images; the prompts by default.
        """
        from diffusion_lens import viz

        texts = list(captions or (self.source, *self.targets))
        images = list(self._images())
        note = "The source first, then its edits, from the same noise."
        if self.maps is None:
            return viz.image_strip(images, captions=texts, title=self.method, note=note)
        return viz.overlays(
            images,
            self.maps,
            titles=texts,
            images_over="panel",
            title=self.method,
            note=f"{note} Maps: attention to the edited words, mean over heads and steps.",
            value_name="attention",
        )

    def _images(self) -> Sequence[Any]:
        if self.images is None:
            raise ResultError(
                'the edit was made with output_type="latent" and has no images; decode its latents '
                "with `model.decode_latents(result.latents)`"
            )
        return self.images

    def __repr__(self) -> str:
        """Prompts and sizes in one line."""
        return one_line(
            self,
            f"{self.method} {short(self.source)} -> {short(self.targets)}",
            counted(len(self.targets), "edit"),
            "with maps" if self.maps is not None else "",
            f"latents {tuple(self.latents.shape)}",
            made_by=self.made_by,
            look=(".source_image", ".target_images", ".plot()"),
        )

    def _repr_html_(self) -> str | None:
        """The source's image and its edits."""
        captions = [f"source: {self.source}", *(f"edit: {one}" for one in self.targets)]
        return gallery(self.images, captions=captions, line=repr(self))


def edited_run(
    source: Any, targets: str | Sequence[str], *, seed: Any, settings: dict[str, Any]
) -> Run:
    """One run whose first row is the source and whose others are its edits, with the same noise.

    Args:
        source: The source prompt, or a `Run` of one.
        targets: The target prompts.
        seed: Noise of all rows.
        settings: Arguments of the pipeline's own call; `latents` of one row serve all.

    Raises:
        RunError: If there are several sources, several seeds or images of a prompt, or no target.
    """
    if not isinstance(source, str | Run):
        raise RunError(
            f"an edit has one source prompt, got {source!r}; call the analysis for each source, "
            "with as many targets as you like"
        )
    run = Run.of(source, seed=seed, settings=settings)
    if len(run.prompts) != 1:
        raise RunError(f"an edit has one source prompt, the run has {run.prompts!r}")
    if not isinstance(run.seed, int):
        raise RunError(
            f"source and targets share one noise: give one seed, got seed={run.seed!r}; call the "
            "analysis for each seed"
        )
    if run.images_per_prompt != 1:
        raise RunError(
            f"an edit makes one image of each prompt, {run.images_per_prompt} were asked for; call "
            "the analysis for each seed"
        )
    listed = (targets,) if isinstance(targets, str) else tuple(targets)
    if not listed:
        raise RunError("an edit needs a target prompt, none was given")
    run = run.with_(prompt=(run.prompts[0], *listed))
    latents = run.settings.get("latents")
    if isinstance(latents, Tensor) and len(latents) == 1:
        rows = latents.expand(1 + len(listed), *latents.shape[1:])
        run = run.with_(latents=rows.clone())
    return run


def inference_steps(model: HookedDiffusion, run: Run) -> int:
    """How many steps the run asks its pipeline for.

    Args:
        model: The model.
        run: The run.
    """
    for name in ("timesteps", "sigmas"):
        if run.settings.get(name) is not None:
            return len(run.settings[name])
    given = run.settings.get("num_inference_steps")
    if given is not None:
        return int(given)
    return int(call_settings(model.pipe)["num_inference_steps"])


def edited_images(out: Output, *, method: str, citation: str, **more: Any) -> EditedImages:
    """The result of a run made by `edited_run`.

    Args:
        out: What the run gave.
        method: Name of the analysis.
        citation: What to cite.
        **more: `maps`, and what else made the result.
    """
    maps = more.pop("maps", None)
    source, *targets = out.made_by.run.prompts
    assert out.latents is not None
    return EditedImages(
        source=source,
        targets=tuple(targets),
        images=out.images if out.frames is None else out.frames,
        latents=out.latents,
        method=method,
        maps=maps,
        made_by={**out.made_by.as_dict(), **more},
        citation=citation,
    )
