"""The gradient, with respect to the latents, of a loss over what the denoiser computes."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.authoring import is_modular, observed
from diffusion_lens.border import public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import HookContext, Site

Activations = Sequence[tuple[Tensor, HookContext]]
"""What the hooked points gave in one evaluation, in order."""

LossFunction = Callable[[Activations], Tensor]

NOT_FOR_ONE_EVALUATION = (
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "generator",
    "latents",
    "negative_prompt",
    "output_type",
    "true_cfg_scale",
)


class LossAt(NamedTuple):
    """A loss at some latents.

    Attributes:
        loss: Its value.
        gradient: With respect to the latents; zeros where the loss is flat.
        steps: How many steps the run has.
    """

    loss: float
    gradient: Tensor
    steps: int


@dataclass
class _Reader:
    """Keeps what it sees, with its graph, until the loss is computed."""

    seen: list[tuple[Tensor, HookContext]] = field(default_factory=list)
    open: bool = True
    read_only = True

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        # A checkpointed block computes its activations again in the backward pass: not kept twice.
        if self.open:
            self.seen.append((activation, hook))


class PatternGradient:
    """Evaluates a loss over hooked activations, and its gradient, at any step of a run.

    Only the conditional branch is computed. The pipeline's schedule is a copy, so that this can be
    done between two steps of a run. Texts are encoded once.
    """

    @public
    def __init__(
        self,
        model: HookedDiffusion,
        run: Run,
        sites: Sequence[Site | str],
        loss: LossFunction,
        *,
        checkpoint: bool = True,
    ) -> None:
        """Make one for a run.

        Args:
            model: The model.
            run: The run; its latents, generator and guidance are not looked at.
            sites: What the loss is a function of, mostly `hook_pattern`.
            loss: Takes (activation, hook) pairs in the order in which they were computed, and gives
                a scalar.
            checkpoint: Recompute blocks in the backward pass in place of keeping what they
                computed, where the denoiser can.

        Raises:
            RunError: For a bare denoiser or a modular pipeline, or without Sites.
        """
        if model.pipe is None:
            raise RunError(
                "a bare denoiser has no loop whose latents could change; wrap the pipeline"
            )
        if is_modular(model.pipe):
            raise RunError(
                f"the blocks of {type(model.pipe).__name__} compute under torch.no_grad, without "
                "gradients; wrap the classic pipeline of its components, "
                "`HookedDiffusion(Pipeline(**components))`"
            )
        if not sites:
            raise RunError("sites= is empty: the loss would be a function of nothing; name some")
        with model.paused():
            pipe = copy.copy(model.pipe)
            pipe.scheduler = copy.deepcopy(model.pipe.scheduler)
        self.model = HookedDiffusion(pipe, name=model.name)
        if hasattr(pipe, "encode_prompt"):
            object.__setattr__(pipe, "encode_prompt", _once(pipe.encode_prompt))
        settings = {
            name: value
            for name, value in run.settings.items()
            if name not in NOT_FOR_ONE_EVALUATION and not name.startswith("negative_")
        }
        if self.model.spec.guidance == "batched" and not _guidance_is_embedded(self.model):
            settings["guidance_scale"] = 1.0
        self.run = Run(run.prompt, seed=run.seed, **settings)
        self.sites = [Site.of(site).with_(branch="cond", steps=None) for site in sites]
        self.loss = loss
        self.checkpoint = checkpoint

    def __call__(self, latents: Tensor, step: int) -> LossAt:
        """The loss and its gradient at some latents of a step.

        Raises:
            RunError: If the loss is no scalar tensor.
        """
        reader = _Reader()
        scheduler: Any = self.model.pipe.scheduler  # type: ignore[union-attr]
        lengths: list[int] = []

        def note_length(set_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            lengths.append(len(scheduler.timesteps))
            return result

        with (
            # Innermost, since `denoise` cuts the schedule for its one step.
            observed(scheduler, "set_timesteps", note_length, innermost=True),
            torch.inference_mode(False),
            torch.enable_grad(),
            _weights_frozen(self.model.denoiser),
            _checkpointed(self.model.denoiser, self.checkpoint),
            self.model.hooks([(site, reader) for site in self.sites]),
        ):
            given = latents.detach().clone().requires_grad_()
            self.model.denoise(given, prompt=self.run, step=step, grad=True)
            loss = _scalar(self.loss(reader.seen), self.loss)
            reader.open = False
            reader.seen = []
            gradient = torch.zeros_like(given)
            if loss.requires_grad:
                (found,) = torch.autograd.grad(loss, given, allow_unused=True)
                gradient = gradient if found is None else found
        return LossAt(float(loss.detach()), gradient.detach(), lengths[-1])


def _scalar(value: Any, loss: LossFunction) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        return value.reshape(())
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    raise RunError(
        f"the loss {loss!r} gave a {type(value).__name__}{shape}; it takes (activation, hook) "
        "pairs and gives a scalar tensor that was computed from the activations"
    )


def _guidance_is_embedded(model: HookedDiffusion) -> bool:
    """Whether the denoiser takes the guidance scale itself, so that there is one branch anyway."""
    return getattr(model.denoiser.config, "time_cond_proj_dim", None) is not None


def _once(encode: Callable[..., Any]) -> Callable[..., Any]:
    """Text encoding that is done once and records no graph."""
    kept: dict[str, Any] = {}

    @functools.wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        if "found" not in kept:
            with torch.no_grad():
                kept["found"] = encode(*args, **kwargs)
        return kept["found"]

    return encode_prompt


@contextlib.contextmanager
def _weights_frozen(denoiser: Any) -> Iterator[None]:
    """No graph for the weights while the context is open."""
    weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextlib.contextmanager
def _checkpointed(denoiser: Any, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing on while the context is open, where the denoiser can."""
    can = wanted and getattr(denoiser, "_supports_gradient_checkpointing", False)
    if not can or denoiser.is_gradient_checkpointing:
        yield
        return
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()
        for module in denoiser.modules():  # which diffusers leaves behind
            module.__dict__.pop("_gradient_checkpointing_func", None)
