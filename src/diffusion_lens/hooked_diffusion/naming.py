"""What a model's hook points are called, and where the words of a prompt lie."""

from __future__ import annotations

from diffusion_lens.architectures.sources import ProductWeights
from diffusion_lens.border import public
from diffusion_lens.engine.prompt_blocks import telling_words, text_length
from diffusion_lens.engine.words import PromptTokens, refuse_other_text
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points.names import NamePattern
from diffusion_lens.hook_points.point import HookPoint
from diffusion_lens.hook_points.site import Site
from diffusion_lens.hooked_diffusion.hook_table import HookTable, hook_table
from diffusion_lens.hooked_diffusion.run import Run
from diffusion_lens.hooked_diffusion.wired import Wired


class Naming(Wired):
    """The part of `HookedDiffusion` that looks up names and words."""

    @public
    def hook_names(self, pattern: NamePattern = "**") -> list[str]:
        """The names of hook points, in order of execution block by block.

        Args:
            pattern: Which names; `native:**` lists every module's output by its path in diffusers.

        Raises:
            UnknownHookPointError: If nothing matches; the message shows the closest names.
        """
        return list(self.find_points(pattern))

    @public
    def find_points(self, pattern: NamePattern = "**") -> dict[str, HookPoint]:
        """Hook points by name: their axes, heads, stream and module.

        Args:
            pattern: Which names, as for `hook_names`.

        Raises:
            UnknownHookPointError: If nothing matches; the message shows the closest names.
        """
        return self.wiring.find(pattern)

    @public
    def hook_table(self, pattern: NamePattern = "**") -> HookTable:
        """A table of hook points: axes, sizes at the native size, module, dead and absent ones.

        Args:
            pattern: Which names.

        Raises:
            UnknownHookPointError: If nothing matches; the message shows the closest names.
        """
        return hook_table(self.wiring, pattern)

    @public
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
    def words(
        self,
        prompt: str,
        word: str,
        *,
        occurrence: int | None = None,
        max_sequence_length: int | None = None,
    ) -> tuple[int, ...]:
        """Positions in the text stream of a word or phrase of a prompt.

        Args:
            prompt: The prompt.
            word: A word or phrase of it.
            occurrence: Which one, counted from 0; None for all.
            max_sequence_length: The run's, which may cut words away; None is the pipeline's own.

        Raises:
            WordError: If it is not in the prompt, or not as often.
            RunError: For a bare denoiser, which has no tokenizer.
        """
        tokens = self.prompt_tokens(prompt, max_sequence_length=max_sequence_length)
        return tokens.find(word, occurrence=occurrence)

    @public
    def prompt_tokens(
        self,
        prompt: str | tuple[str, ...],
        *,
        max_sequence_length: int | None = None,
        negative: bool = False,
        run: Run | None = None,
    ) -> PromptTokens:
        """The tokens of a prompt: where each lies in the text stream, which characters it covers.

        Args:
            prompt: The prompt, or one for each part of the text stream (SD3's `prompt` and
                `prompt_3`).
            max_sequence_length: The run's, which may cut words away; None is the pipeline's own.
            negative: Whether it is a negative prompt, to which Lumina 2 and Sana add nothing.
            run: The run that it is a prompt of, whose settings say its length.

        Raises:
            RunError: For a bare denoiser, which has no tokenizer.
            WordError: If the run's settings have the prompt written anew, or framed in another way,
                or what the blocks of a modular pipeline make of a prompt is not described.
        """
        if self.pipe is None:
            raise RunError("a bare denoiser has no tokenizer; wrap the pipeline to look up words")
        parts, length = self.spec.text_parts, max_sequence_length
        if run is not None:
            refuse_other_text(self.pipe, parts, run.settings)
            length = run.text_length if length is None else length
        pipe, length = telling_words(self.pipe), text_length(self.pipe, length)
        return PromptTokens.of(pipe, parts, prompt, max_length=length, negative=negative)
