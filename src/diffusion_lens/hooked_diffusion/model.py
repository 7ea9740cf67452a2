"""HookedDiffusion: any ready diffusers pipeline with named hook points."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.activation_cache import ActivationCache
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.border import Size, public
from diffusion_lens.border.devices import Device
from diffusion_lens.border.pictures import Pictures
from diffusion_lens.concept_streams.opening import open_streams
from diffusion_lens.concept_streams.streams import ConceptStreams
from diffusion_lens.engine.prompt_blocks import classic
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import ConceptError, RunError, UnsupportedModelError
from diffusion_lens.hook_points.site import Sites
from diffusion_lens.hooked_diffusion import images
from diffusion_lens.hooked_diffusion.caching import CacheOptions, progress, recording
from diffusion_lens.hooked_diffusion.denoise import Prediction, denoise
from diffusion_lens.hooked_diffusion.generating import generate, refuse_unknown_settings
from diffusion_lens.hooked_diffusion.hooking import Hook, Hooking
from diffusion_lens.hooked_diffusion.naming import Naming
from diffusion_lens.hooked_diffusion.on_request import described_on_request
from diffusion_lens.hooked_diffusion.output import Output
from diffusion_lens.hooked_diffusion.run import DEFAULT_SEED, Run
from diffusion_lens.hooked_diffusion.silence import refuse_silent
from diffusion_lens.showing.one_line import counted

Prompts = str | Sequence[str] | Run | None
Seed = int | Sequence[int] | None


class HookedDiffusion(Naming, Hooking):
    """A diffusers pipeline (or a bare denoiser) whose activations can be read and replaced.

    Nothing of the pipeline is changed: no module, processor or forward is replaced, and outside
    of hooked runs nothing is attached to it. Without hooks, and with hooks that only read, images
    are bit for bit those of the pipeline.

    Examples:
        >>> model = HookedDiffusion.toy("shapes-unet")
        >>> out, cache = model.run_with_cache("a red circle", names_filter="**.hook_resid_post")
    """

    @public
    def __init__(
        self,
        pipe: Any,
        *,
        name: str | None = None,
        denoiser: str | None = None,
        describe: bool | Mapping[str, Any] = False,
        spec: DenoiserSpec | None = None,
    ) -> None:
        """Wrap a ready pipeline: with LoRA, quantised, offloaded, compiled, image-to-image, ….

        Args:
            pipe: A diffusers pipeline, classic or modular with its components loaded, or a denoiser
                that is called by hand.
            name: What to call the model in tables; by default where it was loaded from.
            denoiser: The pipeline's attribute that alone is hooked, where there are several (Wan
                2.2: `"transformer"`, above a noise level, and `"transformer_2"`, below it). None
                hooks both: the hook points of the second are `denoiser2.blocks.0.…`, which only
                names that begin with `denoiser2.` select (`**` stands for those of the first).
            describe: Whether a denoiser class that is not known is described on the spot, from a
                short run of the pipeline at a small size; a mapping gives arguments of that run,
                such as an image, or those of one call of a bare denoiser. The description is
                provisional: it offers the hook points at which clauses 1 to 3, 6 and 7 of the
                contract hold, and tells no words.
            spec: A description to use in place of the one that is registered for the class.

        Raises:
            UnsupportedModelError: If there is no denoiser of a known architecture, or a modular
                pipeline has not loaded its denoiser, scheduler or guider.
        """
        if isinstance(pipe, str | Path | HookedDiffusion):
            raise UnsupportedModelError(
                f"{pipe!r} is no pipeline; load an id or a folder with "
                "`HookedDiffusion.from_pretrained(...)`, and wrap a pipeline once"
            )
        if spec is None and describe is not False:
            spec = described_on_request(pipe, denoiser, describe)
        self.wiring = Wiring(pipe, denoiser, spec)
        config = getattr(self.denoiser, "config", {})
        self.name = name or getattr(config, "_name_or_path", "") or type(self.denoiser).__name__

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

    @public(args=Device | torch.dtype | None)
    def to(self, *args: Any, **kwargs: Any) -> HookedDiffusion:
        """Move or cast the pipeline; returns this model."""
        (self.pipe or self.denoiser).to(*args, **kwargs)
        return self

    # -- running ------------------------------------------------------------------------------

    @public
    def __call__(
        self, prompt: Prompts = None, *, seed: Seed = DEFAULT_SEED, **settings: Any
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
        wiring = self.wiring
        wiring.tracker.refuse_while_running("the model was run")
        wiring.refuse_other_wrappers()
        for registration in wiring.registrations:
            registration.fired.clear()
        with wiring.tracker.noting() as seen:
            output = generate(wiring, run, model=self.name, dtype=self.dtype)
        refuse_silent(wiring, wiring.registrations, seen)
        return output

    @public
    def run_with_hooks(
        self,
        prompt: Prompts = None,
        *,
        seed: Seed = DEFAULT_SEED,
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
        seed: Seed = DEFAULT_SEED,
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
        wiring = self.wiring
        with recording(wiring, options) as cache, progress(wiring, cache, show=show_progress):
            output = self(prompt, seed=seed, **settings)
            cache.info.update({"model": self.name, **output.made_by.as_dict()})
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
        with self.wiring.batch_holds(branches), recording(self.wiring, options) as cache:
            cache.info["model"] = self.name
            yield cache

    @public
    def denoise(
        self,
        latents: Tensor,
        *,
        prompt: Prompts = None,
        step: int | None = None,
        noise_level: float | None = None,
        seed: Seed = DEFAULT_SEED,
        grad: bool | None = None,
        **settings: Any,
    ) -> Prediction:
        """Evaluate the denoiser once, with guidance, as the pipeline would do it.

        Differentiable with respect to latents, embeddings (`prompt_embeds=`, …) and hooked
        activations, but not in modular pipelines, whose blocks compute without gradients.

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
                exist, or the latents do not fit; or a modular pipeline cannot do it exactly: with
                gradients, at a noise level with a guider, or if its class is not described.
        """
        run = Run.of(prompt, seed=seed, settings=settings)
        if self.pipe is not None:
            refuse_unknown_settings(self.pipe, run)
        return denoise(self.wiring, latents, run, step=step, at_noise_level=noise_level, grad=grad)

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
            RunError: If the VAE does not take so many frames, or what a modular pipeline does with
                images is not described.
        """
        axes = self.points["hook_latents"].axes
        size = {"height": height, "width": width}
        pipe = classic(self._needed_pipe("encode_image"), "encode_image")
        return images.encode_image(pipe, image, axes=axes, seed=seed, **size)

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

        Raises:
            RunError: If packed latents do not make an image of that size, or what a modular
                pipeline does with latents is not described.
        """
        return images.decode_latents(
            classic(self._needed_pipe("decode_latents"), "decode_latents"),
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
        scheduler = self._needed_pipe("add_noise").scheduler
        return images.add_noise(scheduler, latents, level=noise_level, seed=seed)

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
        tokens: str | int = "all",
        position: int | None = None,
        pooled: str | Tensor | None = None,
        attend: Sequence[str] = ("concepts", "image"),
        blocks: Sequence[int] | None = None,
        max_sequence_length: int | None = None,
        slots: int | None = None,
        image_queries: bool = False,
        encoder_settings: Mapping[str, Any] | None = None,
    ) -> Iterator[ConceptStreams]:
        """Send concept tokens through the blocks beside the image while the context is open.

        Their queries, keys, values, patterns, z, sublayer outputs and residuals become hook points
        (`blocks.0.attn.concept.hook_z`, `blocks.0.concept.hook_resid_post`, …) that are read and
        edited like any other. No image or prompt token attends to a concept: images are bit for
        bit those without concepts. Nothing is computed that no hook asks for.

        Args:
            concepts: Words or phrases, encoded by the pipeline's own text encoder; or text
                embeddings with axes batch, concept, d_text (a batch of 1 serves every image; Krea
                2's have an axis of layers before d_text). Where the family refines its text with
                attention before the first block, concepts pass that together, as one text.
            tokens: `"all"` tokens of each phrase, encoded alone; the `"first"` one only, as
                published for Flux and CogVideoX; `"joint"`, as published for SD3: all concepts
                encoded as one prompt, whose start token rides along as a further key; or the number
                of a row of each encoded text (negative: from the end), as published for Flux.2.
            position: The text token whose rotary position all concepts take (negative: from the
                end); None for the first. Families whose text has no such positions take none.
            pooled: The pooled text embedding of their modulation: `"zeros"`, `"prompt"` (that of
                each image), `"concepts"` (that of all concepts joined by spaces), or a tensor with
                axes batch, d_pooled. None is the published choice for the family: zeros for Flux,
                the prompt for SD3; and the prompt where nothing is published (HunyuanVideo). Most
                families have none: concepts share the image's modulation.
            attend: What concepts attend to: `"concepts"`, `"image"`, both, or none, in which case
                a concept's z is its own value.
            blocks: Blocks that get hook points; None for every block that treats text apart from
                the image, or for all where none does (CogVideoX, Z-Image). Single blocks, before
                which ConceptAttention stops (Flux, Chroma, AuraFlow, HunyuanVideo), carry concepts
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
            encoder_settings: Further arguments of the pipeline's `encode_prompt`, as the run has
                them (Flux.2's `text_encoder_out_layers`); others are left out.

        Yields:
            What says which rows belong to which concept.

        Raises:
            UnsupportedModelError: If the family has no text stream that concepts could take.
            ConceptError: On an empty or too long concept, an unknown block or choice, or
                embeddings of another shape.

        Source: ConceptAttention, arXiv 2502.04320, section 4. Differs: concepts of several tokens
        keep all of them; the published code keeps the first.
        """
        if self.wiring.companion is not None:
            raise ConceptError(
                "concept streams are open already; leave that context first, or give all concepts "
                "to one"
            )
        streams = open_streams(
            self.wiring,
            concepts,
            tokens=tokens,
            position=position,
            pooled=pooled,
            attend=attend,
            blocks=blocks,
            max_sequence_length=max_sequence_length,
            slots=slots,
            image_queries=image_queries,
            encoder_settings=encoder_settings,
        )
        with self.wiring.accompanied_by(streams):
            yield streams

    # -- inside -------------------------------------------------------------------------------

    def _needed_pipe(self, what: str) -> Any:
        if self.pipe is None:
            raise RunError(
                f"{what} needs a pipeline, and this model wraps a bare {self.wiring.called}; wrap "
                "the pipeline it belongs to"
            )
        return self.pipe

    def __repr__(self) -> str:
        """Name, family and size in one line."""
        kind = "bare denoiser" if self.pipe is None else type(self.pipe).__name__
        return (
            f"HookedDiffusion({self.name}: {kind}, {self.spec.family}, "
            f"{counted(self.n_blocks, 'block')}, "
            f"{counted(len(self.points), 'hook point')})"
        )
