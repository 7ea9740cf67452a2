"""Noise on the word embeddings of some words: the corruption of causal tracing.

Source: Basu et al., Localizing and Editing Knowledge in Text-to-Image Generative Models, arXiv
2310.13730, section 3; the size of the noise from Meng et al., ROME, arXiv 2202.05262.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion
from diffusion_lens.authoring import WORD, words_of
from diffusion_lens.border import Number, Seed, public
from diffusion_lens.errors import PatchingError, listing


@dataclass(frozen=True)
class WordNoise:
    """A corruption: Gaussian noise on the input embeddings of words of the clean prompt.

    It is drawn once and the same in every run that it enters, in all text encoders.

    Attributes:
        words: The words, or several in a row; every occurrence is corrupted.
        scale: Standard deviation of the noise in units of that of the encoder's embeddings.
        seed: Seed of the noise.
    """

    words: tuple[str, ...]
    scale: float = 3.0
    seed: int = 0

    @public
    def __init__(self, words: str | Sequence[str], *, scale: Number = 3.0, seed: Seed = 0) -> None:
        """Say which words are corrupted, and how much.

        Raises:
            PatchingError: If no word is named.
        """
        if not words:
            raise PatchingError("words= is empty; name the words that are corrupted")
        object.__setattr__(self, "words", (words,) if isinstance(words, str) else tuple(words))
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "seed", seed)

    @contextlib.contextmanager
    def applied(self, model: HookedDiffusion, prompt: str) -> Iterator[None]:
        """Corrupt the prompt wherever it is encoded while the context is open.

        Raises:
            PatchingError: If a word is not in the prompt, there is no text encoder, or none of them
                was given the prompt as it is.
        """
        encoders = list(_encoders(model.pipe))
        missing = [word for word in self.words if not _spans(prompt, word)]
        if missing or not encoders:
            raise PatchingError(
                f"{missing[0]!r} is not in the prompt {prompt!r}; its words are "
                f"{listing(words_of(prompt), most=20)}"
                if missing
                else "the pipeline has no text encoder whose embeddings could be corrupted"
            )
        found: list[bool] = []
        with contextlib.ExitStack() as undo:
            for tokenizer, embedding in encoders:
                hook = self._hook(tokenizer, embedding, prompt, found)
                undo.callback(embedding.register_forward_hook(hook).remove)
            yield
        if found and not any(found):
            raise PatchingError(
                f"no text encoder of {type(model.pipe).__name__} was given the tokens of {prompt!r}"
                " as they are: it puts the prompt into a chat or template, whose words cannot be "
                "corrupted. Give another prompt as corrupted="
            )

    def _hook(self, tokenizer: Any, embedding: nn.Module, prompt: str, found: list[bool]) -> Any:
        encoded = tokenizer(prompt, return_offsets_mapping=True, truncation=True)
        ids = torch.tensor(encoded["input_ids"])
        wanted = [span for word in self.words for span in _spans(prompt, word)]
        places = [
            place
            for place, (start, end) in enumerate(encoded["offset_mapping"])
            if start < end and any(start < stop and begin < end for begin, stop in wanted)
        ]
        weight: Tensor = embedding.weight  # type: ignore[assignment]
        random = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(len(places), weight.shape[1], generator=random)
        noise = (noise * self.scale * float(weight.detach().float().std())).to(weight)

        def corrupt(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            given = args[0].reshape(output.shape[:-1]).reshape(-1, output.shape[-2])
            length = min(len(ids), given.shape[1])
            mine = (given[:, :length] == ids[:length].to(given)).all(1)  # not the negative prompt
            out = output.clone()
            rows = mine.nonzero().flatten()
            found.append(len(rows) > 0)
            out[rows[:, None], torch.tensor(places, device=rows.device)] += noise.to(output)
            return out

        return corrupt


def _encoders(pipe: Any) -> Iterator[tuple[Any, nn.Module]]:
    """Every tokenizer with the token embedding of its encoder."""
    for name, encoder in getattr(pipe, "components", {}).items():
        tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"), None)
        if name.startswith("text_encoder") and encoder is not None and tokenizer is not None:
            yield tokenizer, encoder.get_input_embeddings()


def _spans(prompt: str, words: str) -> list[tuple[int, int]]:
    """Where a word, or several in a row, stand in the prompt, upper and lower case alike."""
    wanted = [word.lower() for word in WORD.findall(words)]
    there = list(WORD.finditer(prompt))
    stretches = [there[at : at + len(wanted)] for at in range(len(there))] if wanted else []
    return [
        (found[0].start(), found[-1].end())
        for found in stretches
        if [one.group().lower() for one in found] == wanted
    ]
