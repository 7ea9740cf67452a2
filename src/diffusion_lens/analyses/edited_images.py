"""What every editing analysis gives: a source image and its edits, and what made them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
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
        settings: Arguments of the pipeline's own call; `latents` of one row serve all, and so does
            one negative prompt.

    Raises:
        RunError: If there are several sources, several seeds or images of a prompt, a generator, no
            target, or latents of another number of rows.
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
    if run.settings.get("generator") is not None:
        raise RunError(
            "source and targets share one noise, of which a generator gives every row its own: "
            f"leave generator= out and give seed={run.seed}, or latents= of one row"
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
    return run.with_(**_for_every_row(run.settings, 1 + len(listed)))


def _for_every_row(settings: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Those settings that one row gave for all, row by row."""
    changed: dict[str, Any] = {}
    latents = settings.get("latents")
    if latents is not None and not isinstance(latents, Tensor):
        raise RunError(
            f"latents= takes a tensor, got a {type(latents).__name__}; of what `invert` found, "
            "give `.latents`"
        )
    if latents is not None:
        if len(latents) not in (1, rows):
            raise RunError(
                f"latents= has {len(latents)} rows for {rows} prompts, the source's and the "
                "targets'; give one row for all, or one for each"
            )
        changed["latents"] = latents.expand(rows, *latents.shape[1:]).clone()
    for name, value in settings.items():
        listed = [value] if isinstance(value, str) else value
        if name.startswith("negative_prompt") and isinstance(listed, list) and len(listed) == 1:
            changed[name] = listed * rows
    return changed


def rows_of(run: Run, start: int, stop: int) -> Run:
    """Some rows of a run made by `edited_run`, as a run."""
    prompts = run.prompts
    changes: dict[str, Any] = {"prompt": tuple(prompts[start:stop])}
    for name, value in run.settings.items():
        if name == "latents" and isinstance(value, Tensor):
            changes[name] = value[start:stop].clone()
        elif "prompt" in name and isinstance(value, list | tuple) and len(value) == len(prompts):
            changes[name] = list(value[start:stop])
    return run.with_(**changes)


def inference_steps(model: HookedDiffusion, run: Run) -> int:
    """How many steps the run makes, in which shares are counted.

    Schedulers that evaluate twice for a step, such as Heun's, make two of each but the last;
    image-to-image begins within the schedule. PNDM's one more, its first timestep repeated, is not
    counted, as in the released code of Prompt-to-Prompt.

    Args:
        model: The model.
        run: The run.
    """
    pipe: Any = model.pipe
    known = call_settings(pipe)
    count = int(run.settings.get("num_inference_steps") or known["num_inference_steps"])
    for name in ("sigmas", "timesteps"):
        if run.settings.get(name) is not None:
            count = len(run.settings[name])
    if "strength" in known and hasattr(pipe, "get_timesteps"):
        count = _steps_left(pipe, count, run.settings.get("strength", known["strength"]))
    order = getattr(pipe.scheduler, "order", 1)
    return max(1, count * order - (order - 1))


def _steps_left(pipe: Any, count: int, strength: float) -> int:
    """How many steps of an image-to-image pipeline's schedule are made: each rounds by itself."""
    pipe = copy.copy(pipe)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)  # which is told where the run begins
    wanted = inspect.signature(pipe.get_timesteps).parameters
    given = {
        "num_inference_steps": count,
        "strength": strength,
        "device": "cpu",
        "timesteps": pipe.scheduler.timesteps,
        "sigmas": getattr(pipe.scheduler, "sigmas", None),
    }
    found = pipe.get_timesteps(**{name: given[name] for name in wanted if name in given})
    return int(found[-1])


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
