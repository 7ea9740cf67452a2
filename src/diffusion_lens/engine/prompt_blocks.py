"""What the encoder blocks of a modular pipeline make of prompts, and the classic pipeline alike.

Which text a pipeline gives to its tokenizers is described for the classic pipelines. The blocks
named here do the same with a prompt; others are not described, and words are refused there.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from diffusion_lens.engine.modular import encoders_of, inputs_of, is_modular
from diffusion_lens.engine.observing import observed
from diffusion_lens.engine.run_state import images_per_prompt
from diffusion_lens.errors import RunError, WordError, listing

if TYPE_CHECKING:
    from diffusion_lens.engine.steps import StepTracker


@dataclass(frozen=True)
class Twin:
    """The classic pipeline that does as a modular one does.

    Attributes:
        pipeline: Its class.
        encoders: Classes of the blocks that make of a prompt what its `encode_prompt` makes of it;
            none where that is not described.
        ignored: What those blocks take and do not use.
        settings: Attributes of the classic pipeline that those blocks have, with their names there.
    """

    pipeline: str
    encoders: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


_KLEIN = Twin("Flux2KleinPipeline", ("Flux2KleinTextEncoderStep", "Flux2KleinBaseTextEncoderStep"))

_TEMPLATE = ("prompt_template_encode", "prompt_template_encode_start_idx")

TWINS = {
    "StableDiffusionXLModularPipeline": Twin(
        "StableDiffusionXLPipeline", ("StableDiffusionXLTextEncoderStep",)
    ),
    "StableDiffusion3ModularPipeline": Twin(
        "StableDiffusion3Pipeline", ("StableDiffusion3TextEncoderStep",)
    ),
    "FluxModularPipeline": Twin("FluxPipeline", ("FluxTextEncoderStep",), ignored=("prompt_2",)),
    "Flux2ModularPipeline": Twin(
        "Flux2Pipeline",
        ("Flux2TextEncoderStep",),
        settings={"system_message": "DEFAULT_SYSTEM_MESSAGE"},
    ),
    "Flux2KleinModularPipeline": _KLEIN,
    "Flux2KleinBaseModularPipeline": _KLEIN,
    "QwenImageModularPipeline": Twin(
        "QwenImagePipeline",
        ("QwenImageTextEncoderStep",),
        settings={one: one for one in _TEMPLATE},
    ),
    "HunyuanVideo15ModularPipeline": Twin("HunyuanVideo15Pipeline", ()),
    "LTXModularPipeline": Twin("LTXPipeline", ("LTXTextEncoderStep",)),
    "WanModularPipeline": Twin("WanPipeline", ("WanTextEncoderStep",)),
    "ZImageModularPipeline": Twin("ZImagePipeline", ("ZImageTextEncoderStep",)),
}
"""By the class of the modular pipeline."""

WITHOUT_A_TWIN = ("Flux3ModularPipeline",)
"""Modular pipelines that have no classic one, whose texts are described as they make them."""

_MADE: WeakKeyDictionary[Any, tuple[list[Any], Any]] = WeakKeyDictionary()
"""For each modular pipeline its components at that time, and the classic pipeline made of them."""


def classic(pipe: Any, what: str, *, error: type[Exception] = RunError) -> Any:
    """The pipeline itself, or for a modular one the classic pipeline of its very components.

    Args:
        pipe: The pipeline.
        what: What it is needed for.
        error: What to raise.

    Raises:
        RunError: If no classic pipeline is known to do the same.
    """
    if not is_modular(pipe):
        return pipe
    name = type(pipe).__name__
    if name not in TWINS:
        raise error(
            f"{what} is not described for {name}, known are {listing(list(TWINS), most=20)}; wrap "
            "the classic pipeline of its components, `HookedDiffusion(Pipeline(**components))`"
        )
    import diffusers

    kind = getattr(diffusers, TWINS[name].pipeline)
    held, taken = pipe.components, inspect.signature(kind).parameters
    needed = [one for one, parameter in taken.items() if parameter.default is parameter.empty]
    parts = {one: held.get(one) for one in taken if one in held or one in needed}
    made = _MADE.get(pipe)
    if made is None or [*map(id, made[0])] != [*map(id, parts.values())]:
        made = _MADE[pipe] = ([*parts.values()], kind(**parts))
    for block in encoders_of(pipe):
        if type(block).__name__ in TWINS[name].encoders:
            for one, there in TWINS[name].settings.items():
                setattr(made[1], one, getattr(block, there))
    return made[1]


def encoding(pipe: Any, what: str, *, error: type[Exception] = RunError) -> Any:
    """The pipeline whose `encode_prompt` makes what the pipeline makes of a prompt.

    Args:
        pipe: The pipeline, classic or modular.
        what: What it is needed for.
        error: What to raise where no classic pipeline is known to do the same.

    Raises:
        WordError: If the blocks of a modular pipeline that encode prompts are not described.
    """
    refuse_unknown_encoders(pipe)
    return classic(pipe, what, error=error)


def telling_words(pipe: Any) -> Any:
    """The pipeline whose texts are described, for looking up the words of a prompt.

    Raises:
        WordError: If the blocks of a modular pipeline that encode prompts are not described.
    """
    if type(pipe).__name__ in WITHOUT_A_TWIN:
        return pipe
    return encoding(pipe, "text", error=WordError)


class EncoderBlocks:
    """Follows the blocks that encode prompts while hooks are on."""

    def __init__(self, tracker: StepTracker) -> None:
        """Follow them for this tracker."""
        self.tracker = tracker

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Follow them while the context is open."""
        with contextlib.ExitStack() as undo:
            for block in encoders_of(self.tracker.pipe):
                undo.enter_context(observed(block, "__call__", partial(self._encode, block)))
            yield

    def _encode(self, block: Any, original: Callable, components: Any, state: Any) -> Any:
        if self.tracker.run.in_pipeline and components is self.tracker.pipe:
            self._note(block, dict(state.values))
        return original(components, state)

    def _note(self, block: Any, given: dict[str, Any]) -> None:
        run, pipe = self.tracker.run, self.tracker.pipe
        run.encodings += 1
        run.max_length = given.get("max_sequence_length") or run.max_length
        run.untold = _untold(pipe, block) or run.untold
        if run.encodings > 1:
            run.untold = f"this run of {type(pipe).__name__} encoded prompts more than once"
        ignored = TWINS[type(pipe).__name__].ignored if not run.untold else ()
        given = {name: value for name, value in given.items() if name not in ignored}
        prompt = given.get("prompt") or ""
        count = 1 if isinstance(prompt, str) else len(prompt)
        images = images_per_prompt(given)
        run.prompts["cond"] = self.tracker.prompts_of_call(given, "", count, images)
        run.prompts["uncond"] = self.tracker.prompts_of_call(given, "negative_", count, images)


def _untold(pipe: Any, block: Any) -> str:
    """Why the words of what a block encodes cannot be told; empty where they can."""
    name, kind = type(pipe).__name__, type(block)
    if name not in TWINS:
        return f"what {name} makes of a prompt is not described"
    of_diffusers = kind.__module__.startswith("diffusers.")
    if kind.__name__ not in TWINS[name].encoders or not of_diffusers:
        return f"what {kind.__name__} makes of a prompt is not described"
    return ""


def text_length(pipe: Any, given: int | None) -> int | None:
    """The length to which prompts are cut and padded where nothing else is asked for."""
    if given is not None or not is_modular(pipe):
        return given
    return inputs_of(pipe).get("max_sequence_length")


def refuse_unknown_encoders(pipe: Any) -> None:
    """Refuse to tell words where the blocks that encode prompts are not described.

    Raises:
        WordError: Naming the block.
    """
    if not is_modular(pipe):
        return
    found = [reason for reason in (_untold(pipe, block) for block in encoders_of(pipe)) if reason]
    if found or not encoders_of(pipe):
        why = found[0] if found else f"no block of this {type(pipe).__name__} encodes prompts"
        raise WordError(f"{why}; use token indices instead of words")
