"""HookedDiffusion: any ready diffusers pipeline with named hook points."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_lens.activation_cache import ActivationCache
from diffusion_lens.architectures.catalogue import find_absent, find_points, native_points
from diffusion_lens.architectures.registry import architecture_of
from diffusion_lens.architectures.sources import ProductWeights
from diffusion_lens.border import Size, public
from diffusion_lens.border.devices import Device
from diffusion_lens.border.pictures import Pictures
from diffusion_lens.engine.firing import HookFunction, Registration, Tap
from diffusion_lens.engine.session import Session, expand
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.words import PromptTokens
from diffusion_lens.errors import (
    ConceptError,
    RunError,
    SiteError,
    UnknownHookPointError,
    UnsupportedModelError,
    closest,
    listing,
)
from diffusion_lens.hook_points.names import NamePattern, match_names, matches
from diffusion_lens.hook_points.point import HookPoint
from diffusion_lens.hook_points.site import Site, Sites
from diffusion_lens.hooked_diffusion import images
from diffusion_lens.hooked_diffusion.caching import CacheOptions, progress, recording
from diffusion_lens.hooked_diffusion.denoise import Prediction, denoise
from diffusion_lens.hooked_diffusion.hook_table import HookRow, HookTable
from diffusion_lens.hooked_diffusion.output import Output, provenance
from diffusion_lens.hooked_diffusion.report import Report, refuse_silence
from diffusion_lens.hooked_diffusion.run import Run, generators
from diffusion_lens.hooked_diffusion.streams import ConceptStreams

Where = str | Site | Callable[[str], bool]
Hook = tuple[Where, HookFunction]
Prompts = str | Sequence[str] | Run | None
DENOISERS = ("transformer", "unet")
DEPRECATED = ("callback", "callback_steps")
"""Arguments that pipelines still take without listing them."""


class HookedDiffusion:
    """A diffusers pipeline (or a bare denoiser) whose activations can be read and replaced.

    Nothing of the pipeline is changed: no module, processor or forward is replaced, and outside
    of hooked runs nothing is attached to it. Without hooks, and with hooks that only read, images
    are bit for bit those of the pipeline.

    Examples:
        >>> model = HookedDiffusion.toy("shapes-unet")
        >>> out, cache = model.run_with_cache("a red circle", names_filter="**.hook_resid_post")
    """

    @public
    def __init__(self, pipe: Any, *, name: str | None = None) -> None:
        """Wrap a ready pipeline: with LoRA, quantised, offloaded, compiled, image-to-image, ….

        Args:
            pipe: A diffusers pipeline, or a denoiser that is called by hand.
            name: What to call the model in tables; by default where it was loaded from.

        Raises:
            UnsupportedModelError: If there is no denoiser of a known architecture.
        """
        if isinstance(pipe, str | Path | HookedDiffusion):
            raise UnsupportedModelError(
                f"{pipe!r} is no pipeline; load an id or a folder with "
                "`HookedDiffusion.from_pretrained(...)`, and wrap a pipeline once"
            )
        self.pipe = None if isinstance(pipe, nn.Module) else pipe
        self._bare = pipe if isinstance(pipe, nn.Module) else None
        self._registrations: list[Registration] = []
        self._session: Session | None = None
        self._attached_to: tuple[object, ...] = ()
        self._tracker: StepTracker | None = None
        self._branches: tuple[str, ...] | None = None
        self._points: tuple[object, dict[str, HookPoint]] | None = None
        self._beside: ConceptStreams | None = None
        self.spec = architecture_of(type(self.denoiser).__name__)
        config = getattr(self.denoiser, "config", {})
        self.name = name or getattr(config, "_name_or_path", "") or type(self.denoiser).__name__
        self.points  # noqa: B018 (an unknown kind of block is an error now, not in the first run)

    @classmethod
    @public
    def from_pretrained(cls, model: str | Path, **arguments: Any) -> HookedDiffusion:
        """Load any diffusers model, by its id on the Hub or from a folder.

        Args:
            model: Id or folder; "toy:shapes-unet" is `HookedDiffusion.toy("shapes-unet")`.
            **arguments: Passed on to `DiffusionPipeline.from_pretrained`, such as `torch_dtype`; a
                toy takes `torch_dtype` alone.
        """
        from diffusion_lens.toys.loading import PREFIX

        if str(model).startswith(PREFIX):
            return cls.toy(str(model), **arguments)
        from diffusers import DiffusionPipeline

        return cls(DiffusionPipeline.from_pretrained(str(model), **arguments), name=str(model))

    @classmethod
    @public
    def toy(
        cls, name: str = "shapes-unet", *, torch_dtype: torch.dtype | None = None
    ) -> HookedDiffusion:
        """A small trained model that ships with the package: no download, any CPU.

        Args:
            name: One of `diffusion_lens.toys.names()`, with or without "toy:".
            torch_dtype: Of the weights; float32 by default.

        Raises:
            UnknownToyError: If no such model ships.
        """
        from diffusion_lens.toys.loading import PREFIX, load

        return cls(load(name, torch_dtype=torch_dtype), name=PREFIX + name.removeprefix(PREFIX))

    # -- the model ----------------------------------------------------------------------------

    @property
    def denoiser(self) -> Any:
        """The module that is hooked, looked up anew each time."""
        if self.pipe is None:
            found: Any = self._bare
        else:
            found = next(
                (
                    module
                    for attribute in DENOISERS
                    if (module := getattr(self.pipe, attribute, None)) is not None
                ),
                None,
            )
        if found is None:
            raise UnsupportedModelError(
                f"{type(self.pipe).__name__} has no denoiser under any of {DENOISERS}; wrap a "
                "ready text-to-image pipeline, or the denoiser itself"
            )
        return getattr(found, "_orig_mod", found)

    @property
    def points(self) -> dict[str, HookPoint]:
        """Every hook point by name."""
        denoiser = self.denoiser
        processors = getattr(denoiser, "attn_processors", {})
        state = (denoiser, tuple(map(type, processors.values())))
        if self._points is None or self._points[0] != state:
            found = find_points(denoiser, self.spec)
            if self.pipe is None:
                found = {
                    name: point for name, point in found.items() if point.module != "scheduler"
                }
            self._points = (state, found)
        main = self._points[1]
        return main if self._beside is None else self._beside.points(denoiser, main)

    @property
    def tracker(self) -> StepTracker:
        """What follows the pipeline through its steps."""
        if self._tracker is None or self._tracker.denoiser is not self.denoiser:
            self._tracker = StepTracker(self.pipe, self.denoiser, self.spec)
        self._tracker.branches = self._branches
        self._tracker.tokens_beside = {} if self._beside is None else self._beside.tokens()
        return self._tracker

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return getattr(self.pipe, "_execution_device", None) or self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the denoiser."""
        return self.denoiser.dtype

    @property
    def n_blocks(self) -> int:
        """Number of transformer blocks."""
        return 1 + max(point.block for point in self.points.values() if point.block is not None)

    @public(args=Device | torch.dtype | None)
    def to(self, *args: Any, **kwargs: Any) -> HookedDiffusion:
        """Move or cast the pipeline; returns this model."""
        (self.pipe or self._bare).to(*args, **kwargs)  # type: ignore[union-attr]
        return self

    # -- names --------------------------------------------------------------------------------

    @public
    def hook_names(self, pattern: NamePattern = "**") -> list[str]:
        """The names of hook points, in order of execution block by block.

        Args:
            pattern: Which names; `native:**` lists every module's output by its path in diffusers.

        Raises:
            UnknownHookPointError: If nothing matches; the message shows the closest names.
        """
        known = native_points(self.denoiser, pattern) or self.points
        return match_names(pattern, list(known), model=self._called)

    @public
    def hook_table(self, pattern: NamePattern = "**") -> HookTable:
        """A table of hook points: axes, sizes at the native size, module, dead and absent ones.

        Args:
            pattern: Which names.
        """
        absent = [
            HookRow(missing.name, (), (), None, (), None, "", missing.reason, present=False)
            for missing in find_absent(self.denoiser, self.spec)
            if matches(pattern, missing.name)
        ]
        known = native_points(self.denoiser, pattern) or self.points
        names = [name for name in known if matches(pattern, name)]
        if not names and not absent:
            names = self.hook_names(pattern)
        rows = [self._row(known[name]) for name in names]
        return HookTable(f"{self._called}: {len(names)} hook points", (*rows, *absent))

    def text_pattern_sites(self) -> list[Site]:
        """The Sites at which image queries read the text, in any family."""
        return [
            Site(point.name, query="img", key="txt")
            for point in self.points.values()
            if isinstance(point.source, ProductWeights)
            and point.source.which == "pattern"
            and "img" in point.sequences["query"]
            and "txt" in point.sequences["key"]
        ]

    @public
    def words(self, prompt: str, word: str, *, occurrence: int | None = None) -> tuple[int, ...]:
        """Positions in the text stream of a word or phrase of a prompt.

        Args:
            prompt: The prompt.
            word: A word or phrase of it.
            occurrence: Which one, counted from 0; None for all.

        Raises:
            WordError: If it is not in the prompt, or not as often.
            RunError: For a bare denoiser, which has no tokenizer.
        """
        return self.prompt_tokens(prompt).find(word, occurrence=occurrence)

    @public
    def prompt_tokens(self, prompt: str | tuple[str, ...]) -> PromptTokens:
        """The tokens of a prompt: where each lies in the text stream, which characters it covers.

        Args:
            prompt: The prompt, or one for each part of the text stream (SD3's `prompt` and
                `prompt_3`).

        Raises:
            RunError: For a bare denoiser, which has no tokenizer.
        """
        if self.pipe is None:
            raise RunError("a bare denoiser has no tokenizer; wrap the pipeline to look up words")
        return PromptTokens.of(self.pipe, self.spec.text_parts, prompt)

    # -- running ------------------------------------------------------------------------------

    @public
    def __call__(
        self, prompt: Prompts = None, *, seed: int | Sequence[int] | None = 0, **settings: Any
    ) -> Output:
        """Generate, with whatever hooks are active.

        Args:
            prompt: A prompt, several, or a `Run`.
            seed: One integer gives every prompt the same noise; several are paired with the
                prompts; None draws at random. A `Run` has a seed of its own, which is used instead.
            **settings: Arguments of the pipeline's own call.

        Raises:
            HookNeverFiredError: If an active hook never saw a value.
        """
        run = Run.of(prompt, seed=seed, settings=settings)
        if self.pipe is None:
            raise RunError(
                "a bare denoiser does not generate; wrap the pipeline, or call it by hand"
            )
        self._follow_new_parts()
        for registration in self._registrations:
            registration.fired.clear()
        try:
            output = self._generate(run)
        except BaseException:
            self.tracker.forget()
            raise
        self._refuse_silence(self._registrations)
        return output

    @public
    def run_with_hooks(
        self,
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] | None = 0,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        **settings: Any,
    ) -> Output:
        """Generate with hooks, which come off afterwards whatever happens.

        Args:
            prompt: A prompt, several, or a `Run`.
            seed: As for a call.
            fwd_hooks: (name or Site, `fn(activation, hook)`) pairs. A returned tensor, or a change
                in place, replaces the activation.
            bwd_hooks: The same for gradients.
            **settings: Arguments of the pipeline's own call.
        """
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(prompt, seed=seed, **settings)

    @public(names_filter=Sites | None, device=Device | None)
    def run_with_cache(
        self,
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] | None = 0,
        names_filter: Any = None,
        steps: Any = None,
        branch: str = "cond",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        reduce: Any = None,
        max_bytes: int | None = None,
        spool: str | Path | None = None,
        show_progress: bool = True,
        **settings: Any,
    ) -> tuple[Output, ActivationCache]:
        """Generate and record activations.

        Args:
            prompt: A prompt, several, or a `Run`.
            seed: As for a call.
            names_filter: Names, patterns, predicates or Sites. None records the latents and
                predictions only: all patterns of one SDXL run would take hundreds of gigabytes.
            steps: Steps to record, counted from 0, where a Site does not say it.
            branch: `"cond"`, `"uncond"`, or `"all"` for each separately, likewise.
            device: Keep tensors there.
            dtype: Keep them in this precision.
            reduce: Keep one value in place of every step: `"mean"`, `"sum"`, `"last"`, or a class
                of `diffusion_lens.reducers`.
            max_bytes: Refuse to take more; by default half of what is free.
            spool: Keep tensors in this new folder in place of memory.
            show_progress: Show steps and bytes on long runs.
            **settings: Arguments of the pipeline's own call.

        Raises:
            CacheBudgetError: Before anything is kept, with the number and how to narrow it.
        """
        options = CacheOptions(names_filter, steps, branch, device, dtype, reduce, max_bytes, spool)
        with recording(self, options) as cache, progress(self, cache, show=show_progress):
            output = self(prompt, seed=seed, **settings)
        cache.info.update(output.made_by.as_dict())
        return output, cache

    @public(names_filter=Sites | None, device=Device | None)
    @contextlib.contextmanager
    def caching(
        self,
        names_filter: Any = None,
        *,
        steps: Any = None,
        branch: str = "cond",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        reduce: Any = None,
        max_bytes: int | None = None,
        spool: str | Path | None = None,
        branches: Sequence[str] | None = None,
    ) -> Iterator[ActivationCache]:
        """Record whatever runs inside the context, the pipeline's own calls too.

        Use one context for one run: a step that is recorded again takes the place of the one
        before.

        The arguments are those of `run_with_cache` and of `hooks`. Where autograd records, the
        cached tensors are the very ones that the model goes on with: gradients with respect to
        `cache.at(step=…)[name]` exist.
        """
        options = CacheOptions(names_filter, steps, branch, device, dtype, reduce, max_bytes, spool)
        with self.batch_holds(branches), recording(self, options) as cache:
            yield cache

    @public
    def denoise(
        self,
        latents: Tensor,
        *,
        prompt: Prompts = None,
        step: int | None = None,
        noise_level: float | None = None,
        seed: int | Sequence[int] | None = 0,
        grad: bool | None = None,
        **settings: Any,
    ) -> Prediction:
        """Evaluate the denoiser once, with guidance, as the pipeline would do it.

        Differentiable with respect to latents, embeddings (`prompt_embeds=`, …) and hooked
        activations.

        Args:
            latents: The latents, in the form that the pipeline's loop holds them.
            prompt: A prompt, several, or a `Run`.
            step: Which of the pipeline's steps; with `num_inference_steps=`.
            noise_level: In place of it, `timestep / num_train_timesteps`, in (0, 1].
            seed: For pipelines that draw more than latents.
            grad: Whether autograd records. By default where the latents, an embedding or a
                backward hook ask for it.
            **settings: Arguments of the pipeline's own call; `height` and `width` where the
                latents are packed (Flux).

        Raises:
            RunError: If not exactly one of `step` and `noise_level` is given, or they do not
                exist, or the latents do not fit.
        """
        run = Run.of(prompt, seed=seed, settings=settings)
        if self.pipe is not None:
            _refuse_unknown_settings(self.pipe, run)
        return denoise(self, latents, run, step=step, at_noise_level=noise_level, grad=grad)

    # -- images -------------------------------------------------------------------------------

    @public(image=Pictures, height=Size | None, width=Size | None)
    def encode_image(
        self,
        image: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Images (PIL, array or tensor) as latents, as the pipeline's loop holds them.

        Args:
            image: One image or several of one size. For a video model the list of a video's frames,
                a list of such lists, or one image, which is a video of one frame.
            height: Resize to this height in pixels.
            width: Resize to this width in pixels.
            seed: Sample the VAE's distribution with this seed; None takes its mode.

        Raises:
            RunError: If the VAE does not take so many frames.
        """
        axes = self.points["hook_latents"].axes
        size = {"height": height, "width": width}
        return images.encode_image(self.pipe, image, axes=axes, seed=seed, **size)

    @public(latents=Float[Tensor, "batch _ _ *more"], height=Size | None, width=Size | None)
    def decode_latents(
        self,
        latents: Tensor,
        *,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Latents as images; for a video model as a list of frames for each video.

        Args:
            latents: As the pipeline's loop holds them.
            height: In pixels, where the latents are packed (Flux).
            width: In pixels, likewise.
            output_type: `"pil"`, `"np"` or `"pt"`.
        """
        return images.decode_latents(
            self.pipe,
            latents,
            axes=self.points["hook_latents"].axes,
            height=height,
            width=width,
            output_type=output_type,
        )

    @public
    def add_noise(
        self, latents: Tensor, *, noise_level: float, seed: int | list[int] = 0
    ) -> Tensor:
        """Latents with noise, ready for `denoise` at the same level.

        Args:
            latents: Clean latents.
            noise_level: `timestep / num_train_timesteps`, in [0, 1].
            seed: One seed gives every latent the same noise; several are paired with them.
        """
        scheduler = self.pipe.scheduler  # type: ignore[union-attr]
        return images.add_noise(scheduler, latents, level=noise_level, seed=seed)

    # -- hooks --------------------------------------------------------------------------------

    @public
    @contextlib.contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        *,
        branches: Sequence[str] | None = None,
    ) -> Iterator[HookedDiffusion]:
        """Keep hooks on while the context is open; they fire on `model.pipe(...)` calls, too.

        Args:
            fwd_hooks: (name or Site, function) pairs.
            bwd_hooks: The same for gradients.
            branches: What the batch of a denoiser called by hand holds, in order, such as
                `("uncond", "cond")`.

        Raises:
            UnknownHookPointError: If a name matches nothing.
            SiteError: If a Site selects nothing.
            HookNeverFiredError: At the end, if the model ran and a hook never saw a value.
        """
        registrations = [self._registration(*pair) for pair in _pairs(fwd_hooks)]
        registrations += [self._registration(*pair, backward=True) for pair in _pairs(bwd_hooks)]
        with self.batch_holds(branches), self.registered(registrations):
            yield self

    @public
    def add_hook(
        self,
        where: Where,
        fn: HookFunction,
        *,
        dir: str = "fwd",
        is_permanent: bool = False,
    ) -> None:
        """Put a hook on until `reset_hooks` takes it off.

        Args:
            where: A name or Site.
            fn: The function.
            dir: `"fwd"` for activations, `"bwd"` for gradients.
            is_permanent: Survive `reset_hooks()`.
        """
        if dir not in ("fwd", "bwd"):
            raise RunError(f"dir={dir!r}: a hook is 'fwd' or 'bwd'")
        added = self._registration(where, fn, backward=dir == "bwd", permanent=is_permanent)
        self._register([*self._registrations, added])

    @public
    def add_perma_hook(self, where: Where, fn: HookFunction, *, dir: str = "fwd") -> None:
        """Put a hook on that survives `reset_hooks()`."""
        self.add_hook(where, fn, dir=dir, is_permanent=True)

    @public
    def reset_hooks(self, *, including_permanent: bool = False) -> None:
        """Take off the hooks that `add_hook` put on."""
        kept = [one for one in self._registrations if one.permanent and not including_permanent]
        self._register(kept)

    @property
    def has_backward_hooks(self) -> bool:
        """Whether a hook waits for gradients."""
        return any(registration.backward for registration in self._registrations)

    # -- concept streams ----------------------------------------------------------------------

    @public(
        concepts=str | Sequence[str] | Tensor,
        attend=str | Sequence[str],
        slots=Size | None,
        max_sequence_length=Size | None,
    )
    @contextlib.contextmanager
    def concept_streams(
        self,
        concepts: Sequence[str] | Tensor,
        *,
        tokens: str = "all",
        pooled: str | Tensor | None = None,
        attend: Sequence[str] = ("concepts", "image"),
        blocks: Sequence[int] | None = None,
        max_sequence_length: int | None = None,
        slots: int | None = None,
        image_queries: bool = False,
    ) -> Iterator[ConceptStreams]:
        """Send concept tokens through the blocks beside the image while the context is open.

        Their queries, keys, values, patterns, z, sublayer outputs and residuals become hook points
        (`blocks.0.attn.concept.hook_z`, `blocks.0.concept.hook_resid_post`, …) that are read and
        edited like any other. No image or prompt token attends to a concept: images are bit for
        bit those without concepts. Nothing is computed that no hook asks for.

        Args:
            concepts: Words or phrases, encoded by the pipeline's own text encoder; or text
                embeddings with axes batch, concept, d_text (a batch of 1 serves every image).
            tokens: `"all"` tokens of each phrase, encoded alone; the `"first"` one only, as
                published for Flux and CogVideoX; or `"joint"`, as published for SD3: all concepts
                encoded as one prompt, whose start token rides along as a further key.
            pooled: The pooled text embedding of their modulation: `"zeros"`, `"prompt"` (that of
                each image), `"concepts"` (that of all concepts joined by spaces), or a tensor with
                axes batch, d_pooled. None is the published choice for the family: zeros for Flux,
                the prompt for SD3. CogVideoX has none: concepts share the video's modulation.
            attend: What concepts attend to: `"concepts"`, `"image"`, both, or none, in which case
                a concept's z is its own value.
            blocks: Blocks that get hook points; None for every block that treats text apart from
                the image. Flux's single blocks, before which ConceptAttention stops, carry concepts
                where they are named here (`range(model.n_blocks)` names all). The streams always
                start before the first block, since that is where the later ones' come from.
            max_sequence_length: Length to which T5 pads each concept, which changes its embedding;
                None is the pipeline's default.
            slots: Fill the stream up with zero embeddings to so many rows, which are attended to,
                as the release for CogVideoX does (226). They belong to no concept.
            image_queries: Add `attn.img_with_concepts.hook_z`, `hook_pattern` and
                `hook_attn_scores`: what the image's queries see where concepts are in the place of
                the text, whose vectors the release for SD3 multiplies with those of the concepts.
                They are worked out only where a hook reads them, at the price of one more attention
                of the whole image, and cannot be edited: no image token of the run sees a concept.

        Yields:
            What says which rows belong to which concept.

        Raises:
            UnsupportedModelError: If the family has no text stream that concepts could take.
            ConceptError: On an empty or too long concept, an unknown block or choice, or
                embeddings of another shape.

        Source: ConceptAttention, arXiv 2502.04320, section 4. Differs: concepts of several tokens
        keep all of them; the published code keeps the first.
        """
        from diffusion_lens.concept_streams import open_streams

        if self._beside is not None:
            raise ConceptError(
                "concept streams are open already; leave that context first, or give all concepts "
                "to one"
            )
        streams = open_streams(
            self,
            concepts,
            tokens=tokens,
            pooled=pooled,
            attend=attend,
            blocks=blocks,
            max_sequence_length=max_sequence_length,
            slots=slots,
            image_queries=image_queries,
        )
        self._beside = streams
        try:
            yield streams
        finally:
            self._beside = None
            self._register([one for one in self._registrations if self._matches(one)])

    def _matches(self, registration: Registration) -> bool:
        """Whether a hook still has a place."""
        try:
            expand(
                [registration],
                self.points,
                model=self._called,
                branches=self.tracker.known_branches(),
                native=self._native,
            )
        except (UnknownHookPointError, SiteError):
            return False
        return True

    def _native(self, pattern: Any) -> dict[str, HookPoint]:
        return native_points(self.denoiser, pattern)

    # -- inside -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def batch_holds(self, branches: Sequence[str] | None) -> Iterator[None]:
        """Say what the batch of a denoiser called by hand holds while the context is open."""
        before, self._branches = self._branches, tuple(branches) if branches else self._branches
        try:
            yield
        finally:
            self._branches = before
            if self._tracker is not None:
                self._tracker.branches = before

    @contextlib.contextmanager
    def registered(self, registrations: Sequence[Registration]) -> Iterator[None]:
        """Keep registrations active while the context is open; refuse those that stay silent."""
        tracker = self.tracker
        total = tracker.total
        if not self._registrations:
            tracker.seen_branches, tracker.seen_steps = set(), 0
        self._register([*self._registrations, *registrations])
        try:
            yield
            if tracker.total > total or tracker.denoiser is not self.denoiser:
                self._refuse_silence(registrations)
        finally:
            self._register([one for one in self._registrations if one not in registrations])

    @contextlib.contextmanager
    def following(self) -> Iterator[StepTracker]:
        """Follow the pipeline's steps while the context is open, hooks or none."""
        self._follow_new_parts()
        if self._session is not None:
            yield self.tracker
            return
        with self.tracker.attached() as tracker:
            try:
                yield tracker
            finally:
                tracker.forget()

    def taps_of(self, registrations: Sequence[Registration]) -> list[Tap]:
        """Where some registrations are attached."""
        if self._session is None:
            return []
        wanted = set(map(id, registrations))
        return [
            tap
            for taps in self._session.taps.values()
            for tap in taps
            if id(tap.registration) in wanted
        ]

    def _registration(
        self, where: Where, fn: HookFunction, *, backward: bool = False, permanent: bool = False
    ) -> Registration:
        if not callable(fn):
            raise RunError(f"a hook is a function fn(activation, hook), got {fn!r}")
        mark = bool(getattr(fn, "read_only", False)) and not backward
        return Registration(Site.of(where), fn, backward, mark, permanent)

    def _register(self, registrations: Sequence[Registration]) -> None:
        """Make these the active hooks; on an error the hooks before stay as they were."""
        planned = None
        if registrations:
            points, tracker = self.points, self.tracker
            concepts = None if self._beside is None else self._beside.start(tracker)
            planned = Session(tracker, points, registrations, model=self._called, concepts=concepts)
        before, self._registrations = self._registrations, list(registrations)
        if self._session is not None:
            self._session.__exit__(None, None, None)
            self._session = None
        if planned is None:
            if self._tracker is not None:
                self._tracker.forget()
            return
        try:
            planned.__enter__()
        except BaseException:
            self._registrations = []
            if before:
                self._register(before)
            raise
        self._session = planned
        self._attached_to = self._parts()

    def _follow_new_parts(self) -> None:
        """Attach the active hooks anew where the pipeline has other parts than at that time."""
        if self._session is not None and self._attached_to != self._parts():
            self._register(self._registrations)

    def _parts(self) -> tuple[object, ...]:
        """What hooks are attached to: LoRA, for one, puts other modules in place."""
        modules = sum(1 for _ in self.denoiser.modules())
        return (self.denoiser, getattr(self.pipe, "scheduler", None), modules)

    def _refuse_silence(self, registrations: Sequence[Registration]) -> None:
        names: dict[Registration, list[str]] = {registration: [] for registration in registrations}
        for tap in self.taps_of(registrations):
            names[tap.registration].append(tap.point.name)
        tracker = self.tracker
        branches = sorted(tracker.seen_branches)
        refuse_silence(registrations, names, branches=branches, steps=tracker.seen_steps)

    def _generate(self, run: Run) -> Output:
        pipe: Any = self.pipe
        _refuse_unknown_settings(pipe, run)
        settings = dict(run.settings)
        seeds: list[int] = []
        if "generator" not in settings:
            seeds = run.seeds()
            settings["generator"] = generators(seeds)
        prompt = list(run.prompt) if isinstance(run.prompt, tuple) else run.prompt
        if prompt is not None:
            settings["prompt"] = prompt
        last = _LastLatents(settings)
        result = pipe(**last.settings)
        latent = settings.get("output_type") == "latent"
        images = getattr(result, "images", None)
        frames = getattr(result, "frames", None)
        if isinstance(result, tuple):
            images = result[0]
        return Output(
            images=None if latent else images,
            latents=(images if frames is None else frames) if latent else last.latents,
            report=Report.of(self._registrations),
            made_by=provenance(
                pipe,
                run,
                model=self.name,
                seeds=seeds,
                steps=last.steps,
                dtype=self.dtype,
                registrations=self._registrations,
            ),
            frames=None if latent else frames,
        )

    def _row(self, point: HookPoint) -> HookRow:
        grid = self.spec.default_grid(self.denoiser, point.level)
        tokens = {"img": int(torch.Size(grid).numel()), "txt": self._text_tokens()}
        tokens |= {} if self._beside is None else self._beside.tokens()
        count = point.elements(tokens, batch=1)
        return HookRow(
            name=point.name,
            axes=point.axes,
            shape=point.shape(tokens, batch=1),
            heads=point.heads,
            grid=grid,
            nbytes=None if count is None else count * self._itemsize(point),
            module=point.module,
            note=point.dead or "",
        )

    def _text_tokens(self) -> int:
        """Length of the text stream by default: the tokenizer's limit where one fills it."""
        tokenizer = getattr(self.pipe, self.spec.text_parts[0].tokenizer, None)
        if len(self.spec.text_parts) > 1 or tokenizer is None:
            return self.spec.text_tokens
        return min(self.spec.text_tokens, tokenizer.model_max_length)

    def _itemsize(self, point: HookPoint) -> int:
        """Bytes of one number: scores and patterns are float32 in half-precision models."""
        weights = isinstance(point.source, ProductWeights)
        wide = torch.promote_types(self.dtype, torch.float32)
        return (wide if weights else self.dtype).itemsize

    @property
    def _called(self) -> str:
        return type(self.denoiser).__name__

    def __repr__(self) -> str:
        """Name, family and size in one line."""
        kind = "bare denoiser" if self.pipe is None else type(self.pipe).__name__
        return (
            f"HookedDiffusion({self.name}: {kind}, {self.spec.family}, {self.n_blocks} blocks, "
            f"{len(self.points)} hook points)"
        )


def _pairs(hooks: Sequence[Hook]) -> Sequence[Hook]:
    """Hooks as given, if they are (where, function) pairs."""
    wrong = [one for one in hooks if not isinstance(one, tuple | list) or len(one) != 2]
    if wrong:
        raise RunError(
            f"hooks are a list of (name or Site, function) pairs, found {wrong[0]!r}; a single "
            "hook is `fwd_hooks=[(name, fn)]`"
        )
    return hooks


def _refuse_unknown_settings(pipe: Any, run: Run) -> None:
    """Refuse settings that a pipeline would swallow or that contradict the run.

    Raises:
        RunError: Naming the setting and the closest valid one.
    """
    if "generator" in run.settings and run.seed not in (0, None):
        raise RunError(
            f"both seed={run.seed!r} and generator= were given, and only one can make the noise; "
            "leave one out"
        )
    parameters = inspect.signature(type(pipe).__call__).parameters
    unknown = [name for name in run.settings if name not in (*parameters, *DEPRECATED)]
    if unknown:
        near = closest(unknown[0], parameters, count=2)
        hint = f" Closest: {listing(near)}." if near else ""
        raise RunError(
            f"{type(pipe).__name__} takes no argument {unknown[0]!r}.{hint} Its arguments are "
            f"{listing([name for name in parameters if name != 'self'], most=40)}"
        )


class _LastLatents:
    """Keeps the final latents by way of the pipeline's own step callback."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.latents: Tensor | None = None
        self.steps = 0
        self.theirs = settings.get("callback_on_step_end")
        wanted = list(
            getattr(self.theirs, "tensor_inputs", None)
            or settings.get("callback_on_step_end_tensor_inputs", ["latents"])
        )
        if "latents" not in wanted:
            wanted.append("latents")
        self.settings = {
            **settings,
            "callback_on_step_end": self,
            "callback_on_step_end_tensor_inputs": wanted,
        }

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        self.steps += 1
        self.latents = tensors["latents"]
        if self.theirs is None:
            return {}
        changed = self.theirs(pipe, step, timestep, tensors) or {}
        self.latents = changed.get("latents", self.latents)
        return changed
