"""Attention maps as a result: words, masks, figures, saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_lens.analyses.attention_maps.collecting import Aggregation, Pair, resized
from diffusion_lens.analyses.map_gallery import map_gallery
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.authoring import PromptTokens
from diffusion_lens.border import Number, Size, public
from diffusion_lens.errors import ResultError, WordError, closest, listing
from diffusion_lens.showing.one_line import one_line, prompt_of, short

MOST_PANELS = 64
"""How many panels a figure of several words has at most, where blocks or heads are kept apart."""

CITATION = "Tang et al., What the DAAM, ACL 2023, arXiv 2210.04885"


@dataclass(frozen=True)
class AttentionMaps(Saved):
    """How much each place of an image attends to each token of its text.

    Attributes:
        maps: Not negative. With `aggregate="mean"` a value is a share of attention, in [0, 1] up
            to the overshoot of bicubic interpolation, which reaches beyond the values around it
            (`upsample="bilinear"` does not); with `"sum"` it grows with the number of steps.
        axes: Names of the axes: batch, (step), (block or head), token, (frame), height, width.
        positions: For each entry of the token axis its place in the text stream; foreign words come
            after them.
        foreign: For each word that need not be in the prompt, its entries on the token axis.
        prompts: The `PromptTokens` of each sample; empty where the run had embeddings.
        steps: The steps, as counted by the scheduler.
        heads: The (block, head) pairs that went in; the head axis has them in this order.
        blocks: The blocks that went in; the block axis has them in this order.
        images: The images, where the pipeline gave pictures; of a video model a tuple of frames for
            each video.
        made_by: What was run and how.
        citation: What to cite.
    """

    maps: Tensor
    axes: tuple[str, ...]
    positions: tuple[int, ...]
    foreign: Mapping[str, tuple[int, ...]]
    prompts: tuple[Any, ...]
    steps: tuple[int, ...]
    heads: tuple[Pair, ...]
    blocks: tuple[int, ...]
    images: tuple[Any, ...] = ()
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    def __post_init__(self) -> None:
        """Bring back the tokens of a result that was read from a folder."""
        object.__setattr__(self, "prompts", tuple(PromptTokens(*one) for one in self.prompts))

    # -- words --------------------------------------------------------------------------------

    @public
    def word(
        self, word: str | int, *, occurrence: int | None = None, sample: int | None = None
    ) -> Float[Tensor, ...]:
        """The map of a word or phrase: the mean over its tokens.

        Args:
            word: A word or phrase of the prompt, or a foreign one; upper and lower case are not
                told apart. A number is a position in the text stream. Of a word that is both, the
                foreign map is given; `occurrence` or a position asks for that of the prompt.
            occurrence: Which one in the prompt, counted from 0; None for the mean over all.
            sample: Only this sample, whose axis is dropped; None for all.

        Returns:
            The axes of `maps` without token.

        Raises:
            WordError: If the word is not in a sample's prompt, not as often, or was not mapped.
        """
        samples = range(len(self.maps)) if sample is None else [self._sample(sample)]
        axis = self.axes.index("token")
        found = []
        for one in samples:
            rows = torch.tensor(self._rows(word, occurrence, one), device=self.maps.device)
            found.append(self.maps[one].index_select(axis - 1, rows).mean(axis - 1))
        return found[0] if sample is not None else torch.stack(found)

    @public
    def mask(
        self,
        threshold: Number = 0.4,
        *,
        word: str | int | None = None,
        occurrence: int | None = None,
        size: tuple[Size, Size] | list[Size] | None = None,
        absolute: bool = False,
    ) -> Bool[Tensor, ...]:
        """Where a map lies above a threshold.

        Each map is first brought to [0, 1] by its own least and largest value, so that some place
        always lies above: a mask does not tell whether the word is in the image at all.

        Args:
            threshold: What a value must exceed; the paper evaluates 0.3, 0.4 and 0.5.
            word: As for `word`; None for every entry of the token axis.
            occurrence: As for `word`.
            size: Height and width to enlarge to before cutting (bicubic).
            absolute: Cut the values as they are.

        Raises:
            WordError: As for `word`.

        Source: DAAM, arXiv 2210.04885, and its released code. Differs: sizes need not be square.
        """
        maps = self.maps if word is None else self.word(word, occurrence=occurrence)
        if size is not None:
            if len(size) != 2:
                raise ResultError(f"size={size!r}: give height and width")
            maps = resized(maps, size, Aggregation())
        if absolute:
            return maps > threshold
        over = [
            axis - maps.ndim for axis in range(maps.ndim - (3 if self._frames else 2), maps.ndim)
        ]
        low, high = maps.amin(over, keepdim=True), maps.amax(over, keepdim=True)
        return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny) > threshold

    def normalized(self) -> Tensor:
        """Maps divided by their sum over the prompt's tokens, start and end left out.

        Which word gets the attention of a place, in place of how much of it.

        Raises:
            WordError: If not every token of the prompts was mapped.

        Source: `normalize=True` of DAAM's released code.
        """
        for tokens in self.prompts:
            missing = [one for one in tokens.positions if one not in self.positions]
            if missing or self.foreign:
                raise WordError(
                    "normalized maps need every token of the prompt and no other; make the maps "
                    "without words= and foreign="
                )
        if len({tokens.positions for tokens in self.prompts}) != 1:
            raise WordError("normalized maps need prompts with the same number of tokens")
        inner = [at for at, one in enumerate(self.positions) if self._is_text(one)]
        axis = self.axes.index("token")
        rows = torch.tensor(inner, device=self.maps.device)
        return self.maps / (self.maps.index_select(axis, rows).sum(axis, keepdim=True) + 1e-6)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each entry of the token axis is called: characters, or a number."""
        names = [self._label(position) for position in self.positions]
        for word, rows in self.foreign.items():
            names += [word] * len(rows)
        return tuple(names)

    def _label(self, position: int) -> str:
        found = {
            tokens.label(position)
            for tokens in self.prompts
            if position in tokens.positions and tokens.label(position)
        }
        return found.pop() if len(found) == 1 else f"[{position}]"

    def _is_text(self, position: int) -> bool:
        """Whether a token covers characters; start and end cover none."""
        return any(tokens.label(position) for tokens in self.prompts)

    @property
    def _frames(self) -> bool:
        return "frame" in self.axes

    def _sample(self, sample: int) -> int:
        if not -len(self.maps) <= sample < len(self.maps):
            raise ResultError(f"sample {sample} was asked for, there are {len(self.maps)}")
        return sample % len(self.maps)

    def _rows(self, word: str | int, occurrence: int | None, sample: int) -> list[int]:
        """Entries of the token axis."""
        if isinstance(word, str) and occurrence is None:
            foreign = {name.casefold(): rows for name, rows in self.foreign.items()}
            if word.casefold() in foreign:
                return list(foreign[word.casefold()])
        wanted = [word] if isinstance(word, int) else self._positions(word, occurrence, sample)
        missing = [one for one in wanted if one not in self.positions]
        if missing:
            raise WordError(
                f"{word!r} was not mapped: there are maps of the tokens "
                f"{listing([f'{at} {self._label(at)!r}' for at in self.positions], most=20)}; "
                "name it in words="
            )
        return [self.positions.index(one) for one in wanted]

    def _positions(self, word: str, occurrence: int | None, sample: int) -> tuple[int, ...]:
        if not self.prompts:
            near = closest(word, self.foreign)
            hint = f" Closest: {near[0]!r}." if near else ""
            raise WordError(
                f"{word!r} cannot be looked up: the prompts are not known.{hint} Give a position "
                "in the text stream"
            )
        try:
            return self.prompts[sample].find(word, occurrence=occurrence)
        except WordError as error:
            raise WordError(
                f"{error} (sample {sample}; a word that is not in the prompt gets a map with "
                f"foreign=[{word!r}], there are {list(self.foreign)})"
            ) from None

    # -- figures ------------------------------------------------------------------------------

    @public
    def overlay(
        self,
        words: str | Sequence[str] | None = None,
        *,
        sample: int = 0,
        images: Any = None,
        **settings: Any,
    ) -> Any:
        """Maps of words over an image: a plotly figure, with a slider over kept steps or frames.

        Args:
            words: Panels, one for each word and each block or head that was kept; None for every
                word or token that was mapped.
            sample: Which sample.
            images: The image to draw over, where the run gave none.
            **settings: Further arguments of `viz.overlays`, such as `alpha`.

        Raises:
            ResultError: If there is no image or no word, or there are more panels than
                `MOST_PANELS`.
        """
        asked = [words] if isinstance(words, str) else words
        if asked is None:
            rows = self.maps[self._sample(sample)].movedim(self.axes.index("token") - 1, -3)
            titles = list(self.labels)
        else:
            if not asked:
                raise ResultError("words= is empty; leave it out for every word that was mapped")
            rows = torch.stack([self.word(word, sample=sample) for word in asked], -3)
            titles = [str(one) for one in asked]
        kept, names = self._kept()
        if kept is None:
            return self._drawn(rows, titles, sample, images, settings)
        count = len(titles) * len(names)
        if count > MOST_PANELS:
            raise ResultError(
                f"{len(titles)} words times {len(names)} {kept}s are {count} panels; at most "
                f"{MOST_PANELS} are drawn. Name fewer words, or make the maps with fewer of them "
                f"(heads=, blocks=), or without keep={kept!r} for their mean"
            )
        rows = rows.movedim(self.axes.index(kept) - 1, -3).flatten(-4, -3)
        titles = [f"{title}, {name}" for title in titles for name in names]
        return self._drawn(rows, titles, sample, images, settings)

    @public
    def plot(
        self,
        word: str | int | None = None,
        *,
        sample: int = 0,
        images: Any = None,
        **settings: Any,
    ) -> Any:
        """The map of a word, a panel for each block or head that was kept.

        Args:
            word: As for `word`; None for what `overlay` shows of all words.
            sample: Which sample.
            images: The image to draw over, where the run gave none.
            **settings: Further arguments of `viz.overlays`.

        Raises:
            ResultError: If there is no image.
        """
        if word is None:
            return self.overlay(sample=sample, images=images, **settings)
        rows = self.word(word, sample=sample)
        kept, titles = self._kept()
        at = 1 if "step" in self.axes else 0
        rows = rows.unsqueeze(-3) if kept is None else rows.movedim(at, -3)
        return self._drawn(rows, titles or [str(word)], sample, images, settings)

    def _kept(self) -> tuple[str | None, list[str]]:
        """The axis of blocks or heads that were kept apart, and what its entries are called."""
        if "head" in self.axes:
            return "head", [f"{block}.{head}" for block, head in self.heads]
        if "block" in self.axes:
            return "block", [f"block {block}" for block in self.blocks]
        return None, []

    def _drawn(
        self, rows: Tensor, titles: Sequence[str], sample: int, images: Any, settings: Any
    ) -> Any:
        from diffusion_lens import viz

        if images is None and not self.images:
            raise ResultError(
                "there is no image to draw over: the run gave latents; give images=, or run "
                "without output_type='latent'"
            )
        image = self.images[sample] if images is None else images
        names = [axis for axis in ("step", "frame") if axis in self.axes]
        slider, counts = None, names[0] if len(names) == 1 else ""
        if self._frames and isinstance(image, list | tuple):
            image = self._behind(image)
            settings = {"images_over": "step", **settings}
        if names:
            rows = rows.flatten(0, len(names) - 1)
            counted = [
                self.steps if axis == "step" else range(self._count("frame")) for axis in names
            ]
            slider = [f"{one}" for one in counted[0]]
            if len(counted) == 2:
                slider = [f"step {one}, frame {two}" for one in counted[0] for two in counted[1]]
        style = {**self._said(), "steps": slider, "step_name": counts, **settings}
        return viz.overlays(image, rows, titles=list(titles), **style)

    def _said(self) -> dict[str, Any]:
        """What the values mean, for a figure."""
        over = [one for one in ("head", "block", "step") if one not in self.axes]
        if "head" in self.axes:  # a head is of one block
            over = [one for one in over if one != "block"]
        mean = f", mean over {' and '.join(f'{one}s' for one in over)}" if over else ""
        share = "aggregate='sum'" not in str(self.made_by.get("preset", ""))
        what = "Share of attention" if share else "Sum over steps of the attention"
        note = f"{what} that each place of the image pays to the word{mean}."
        if "head" in self.axes:
            note += " A panel for each head, named block.head."
        return {"note": note, "value_name": "share of attention" if share else "attention, summed"}

    def _behind(self, frames: Sequence[Any]) -> list[Any]:
        """The last picture of each frame of latents, once for each kept step."""
        count = self._count("frame")
        ratio = (len(frames) - 1) / max(count - 1, 1)
        behind = [frames[round(at * ratio)] for at in range(count)]
        return behind * (self._count("step") if "step" in self.axes else 1)

    def _count(self, axis: str) -> int:
        return self.maps.shape[self.axes.index(axis)]

    def __repr__(self) -> str:
        """Prompt, axes, sizes and tokens in one line."""
        sizes = zip(self.axes, self.maps.shape, strict=True)
        return one_line(
            self,
            prompt_of(self.made_by) or short([tokens.texts[0] for tokens in self.prompts]),
            *(f"{axis} {size}" for axis, size in sizes),
            f"tokens {listing(self.labels, most=12)}",
            made_by=self.made_by,
            look=(".word()", ".mask()", ".plot()"),
        )

    def _repr_html_(self) -> str | None:
        """The first image and its maps, mean over what was kept apart."""
        rows = self.maps[0].movedim(self.axes.index("token") - 1, 0)
        return map_gallery(self.images, list(zip(self.labels, rows, strict=True)), line=repr(self))
