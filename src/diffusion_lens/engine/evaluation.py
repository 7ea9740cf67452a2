"""One evaluation of the denoiser: its step, guidance branches, prompts and grid."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_lens.engine import kept
from diffusion_lens.engine.branches import asides
from diffusion_lens.engine.noise import NoiseLevel, noise_level
from diffusion_lens.engine.prompt_blocks import classic
from diffusion_lens.engine.run_state import (
    SAME_PROMPT,
    PartPrompts,
    Prompts,
    RunState,
    images_per_prompt,
)
from diffusion_lens.engine.words import PromptTokens, tokenizer_of, words_of
from diffusion_lens.errors import EngineError, WordError
from diffusion_lens.hook_points.point import KEPT_KEYS

if TYPE_CHECKING:
    from diffusion_lens.engine.steps import StepTracker


class Evaluation:
    """One call of the denoiser. What it tells stays true after the run that it belongs to.

    Attributes:
        of: What the names of the denoiser that runs begin with.
        changed: Paths of the modules that a guider changed for it.
        beside: What its arguments make of it beside the family's branches, by argument.
        made: How many references' keys and values it makes and keeps.
        used: How many that another one has made it uses.
    """

    def __init__(
        self, tracker: StepTracker, run: RunState, arguments: Mapping[str, Any], of: str = ""
    ) -> None:
        """Work out which rows of the batch belong to which guidance branch.

        Raises:
            EngineError: If that is not certain, or such an evaluation is not described.
        """
        self.tracker = tracker
        self.run = run
        self.of = of
        self.denoiser = tracker.denoisers[of]
        self.spec = tracker.spec
        self.step = run.step
        self.arguments = arguments
        self.changed = () if run.prepared is None else run.prepared.changed
        self.beside = asides(self.spec, arguments)
        self.made, self.used = kept.counts(self.spec.kept, arguments)
        self._refuse_kept()
        self.batch = len(arguments[self.spec.latents])
        self.rows = tracker.branch_rows(run, arguments, self.batch)
        self._scheduled = tracker.scheduled(run, arguments.get(self.spec.timestep))
        self._grids: dict[int, tuple[int, ...]] = {}
        self._text_length: int | None = None
        self._without_holes: set[str] = set()

    def noise_level(self) -> NoiseLevel:
        """Where on the noise schedule the latents lie."""
        timestep, sigma = self._scheduled or (self.timestep(), None)
        return noise_level(self.tracker.scheduler(), timestep, sigma)

    def timestep_known(self) -> float | Tensor:
        """The scheduler's timestep: a number where it is known without waiting for the device."""
        if self._scheduled is not None:
            return self._scheduled[0]
        found = self.arguments.get(self.spec.timestep)
        value = torch.as_tensor(math.nan if found is None else found).reshape(-1)[0]
        value, scale = value.detach().to(torch.float32, copy=True), self.spec.timestep_scale
        return value * scale if scale > 0 else (1 - value) * -scale

    def timestep(self) -> float:
        """The scheduler's timestep."""
        return float(self.timestep_known())

    def tokens_have_timesteps(self) -> bool:
        """Whether each token, or frame, has its own timestep (0 where a first frame is given)."""
        found = self.arguments.get(self.spec.timestep)
        return isinstance(found, Tensor) and found.ndim > 1 and found[0].numel() > 1

    def sigma(self) -> float:
        """The noise level in the scheduler's own units."""
        return self.noise_level().noise

    def grid(self, level: int) -> tuple[int, ...]:
        """Token grid of the image at a resolution level."""
        if self.made or self.used:
            raise EngineError(
                f"{type(self.tracker.pipe or self.denoiser).__name__} puts a given image's tokens "
                "before those of the image that is made, as keys in every step and as queries in "
                "the first, where maps take the image's own to be first; read patterns by "
                f"hook.streams and hook.queries, or {self._instead}"
            )
        if level not in self._grids:
            self._grids[level] = self._grid(level)
        return self._grids[level]

    def _grid(self, level: int) -> tuple[int, ...]:
        """Ids that say the grid are waited for once in a run, not at every evaluation."""
        ids = self.arguments.get(self.spec.grid_from or "")
        if not isinstance(ids, Tensor) or ids.is_inference():  # which tells of no change in place
            return self.spec.grid(self.denoiser, self.arguments, level)
        known = self.run.grid_of
        if known is None or known[0] is not ids or known[1] != ids._version:
            known = self.run.grid_of = (ids, ids._version, {})
        if level not in known[2]:
            known[2][level] = self.spec.grid(self.denoiser, self.arguments, level)
        return known[2][level]

    def tokens(self, level: int) -> dict[str, int]:
        """Token count of each stream at a resolution level."""
        latents = self.arguments[self.spec.latents]
        packed = isinstance(latents, Tensor) and latents.ndim == 3
        image = latents.shape[1] if packed else math.prod(self.grid(level))
        if self.spec.image_length is not None:
            image = self.spec.image_length(self.denoiser, self.arguments)
        has_text = self.arguments.get(self.spec.text) is not None
        found = {"img": int(image)} | ({"txt": self.text_length()} if has_text else {})
        if self.used:
            found[KEPT_KEYS] = self.used
        for stream, argument in self.spec.further.items():
            found[stream] = int(self.arguments[argument].shape[1])
        return found | self.tracker.companion_tokens

    @property
    def _instead(self) -> str:
        return "" if self.spec.kept is None else self.spec.kept.instead

    def _refuse_kept(self) -> None:
        """Refuse what would keep other keys than the pipeline does.

        Raises:
            EngineError: Where concept streams are open, or the pipeline begins at a later step.
        """
        if not self.made and not self.used:
            return
        if self.tracker.companion_tokens:
            raise EngineError(
                "concept streams call each block a second time, which would keep other keys and "
                f"values of the given image; {self._instead}"
            )
        if self.made and self.run.in_pipeline and self.step:
            raise EngineError(
                f"the given image's keys and values are kept in step 0; an evaluation that begins "
                f"at step {self.step} would make others there; run the pipeline from the start"
            )

    def text_length(self) -> int:
        """Number of text tokens; image prompts, which may come beside the text, apart.

        Masks that say it are waited for once in an evaluation, not at every block.
        """
        if self._text_length is None:
            self._text_length = self._counted_text()
        return self._text_length

    def _counted_text(self) -> int:
        if self.spec.text_length is not None:
            lengths = set(self.spec.text_length(self.denoiser, self.arguments))
            if len(lengths) > 1:
                raise EngineError(
                    f"the samples have {sorted(lengths)} text tokens, so that streams begin at "
                    "different places; run prompts of different length one at a time, and without "
                    "guidance or with a negative prompt as long"
                )
            return lengths.pop()
        text = self.arguments[self.spec.text]
        return int((text[0] if isinstance(text, tuple) else text).shape[1])

    def refuse_holes(self, argument: str) -> None:
        """Refuse a mask of tokens that drops one before one that it keeps.

        Waited for once in an evaluation, not at every block.

        Raises:
            EngineError: If it does, so that what follows moves forward to other tokens' places.
        """
        if argument in self._without_holes:
            return
        mask = self.arguments[argument].to(torch.int8)
        if bool((mask.diff(dim=-1) > 0).any()):
            raise EngineError(
                f"`{argument}` drops tokens that stand before others which it keeps, and "
                f"{self.spec.denoiser} moves those forward, to other tokens' places, in each "
                "attention; give a mask that keeps the first tokens (a tokenizer with "
                '`padding_side="right"`)'
            )
        self._without_holes.add(argument)

    def known_prompts(self, branch: str) -> tuple[PartPrompts, ...]:
        """The prompts of a branch, none where they are not known."""
        with contextlib.suppress(WordError):
            return tuple(self.run.prompts_of(branch))
        return ()

    def words(self, branch: str) -> Mapping[str, tuple[int, ...]]:
        """Text-stream indices of the words that lie at the same place in every prompt."""
        prompts = tuple(dict.fromkeys(self.run.prompts_of(branch)))
        known, key = self.run.words, (prompts, self.run.max_length, branch)
        if key not in known:
            found = known[key] = {}
            for word in words_of(" ".join(prompts[0])):
                with contextlib.suppress(WordError):
                    found[word] = self.word(branch, word)
        return dict(known[key])

    def word(self, branch: str, word: str) -> tuple[int, ...]:
        """Text-stream indices of one word of the branch's prompts.

        Raises:
            WordError: If it is missing, or stands elsewhere in another prompt of the batch.
        """
        prompts = tuple(dict.fromkeys(self.run.prompts_of(branch)))
        known, key = self.run.places, (prompts, self.run.max_length, branch, word)
        if key not in known:
            known[key] = self._place(branch, prompts, word)
        return known[key]

    def _place(self, branch: str, prompts: Prompts, word: str) -> tuple[int, ...]:
        try:
            tokens = {prompt: self._tokens(prompt, branch) for prompt in prompts}
            self._refuse_longer_ones(tokens)
            places = {prompt: found.find(word) for prompt, found in tokens.items()}
        except WordError as error:
            if branch == "cond":
                raise
            raise WordError(
                f"{error} This is the prompt of branch {branch!r}: give the Site branch='cond' to "
                "look at the prompt alone."
            ) from error
        if len(set(places.values())) > 1:
            where = "; ".join(f"{prompt!r}: {indices}" for prompt, indices in places.items())
            raise WordError(
                f"{word!r} stands at different tokens in the prompts of one batch ({where}); "
                "run these prompts one at a time, or word them alike"
            )
        return next(iter(places.values()))

    def _refuse_longer_ones(self, tokens: Mapping[PartPrompts, PromptTokens]) -> None:
        """Refuse a batch in which the length of other prompts decides where a prompt's words lie.

        Raises:
            WordError: If they are not equally long.
        """
        several = images_per_prompt(self.run.asked or {}) > 1
        misrepeated = several and any(part.misrepeated for part in self.spec.text_parts)
        if misrepeated and len({len(found.positions) for found in tokens.values()}) > 1:
            raise WordError(
                f"{type(self.tracker.pipe).__name__} draws each prompt several times, and gives "
                "prompts of different length each other's masks then (diffusers 0.42.1), so that "
                "words cannot be told; run these prompts one at a time"
            )
        parts = [part for part in self.spec.text_parts if part.before is not None]
        sides = {
            getattr(tokenizer_of(self.tracker.pipe, part), "padding_side", "") for part in parts
        }
        lengths = {len(found.positions) for found in tokens.values()}
        if len(lengths) > 1 and "left" in sides:
            raise WordError(
                f"the prompts of one batch have {sorted(lengths)} tokens, and the shorter ones are "
                "filled up in front, so that words cannot be told; run these prompts one at a time"
            )

    def _tokens(self, prompt: PartPrompts, branch: str) -> PromptTokens:
        """The tokens of a prompt, once for the run, however many words are looked up in it."""
        negative = SAME_PROMPT.get(branch, branch) == "uncond"
        known, key = self.run.tokens, (prompt, self.run.max_length, negative)
        if key not in known:
            pipe = classic(self.tracker.pipe, "text", error=WordError)
            parts, length = self.spec.text_parts, self.run.max_length
            known[key] = PromptTokens.of(pipe, parts, prompt, max_length=length, negative=negative)
        return known[key]
