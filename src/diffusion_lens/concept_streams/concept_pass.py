"""Concept tokens beside the main pass: each block runs again, for their rows only.

After a block has run, its own `forward` is called once more with the concepts as text and a single
image token, which is thrown away. Inside its attention the concepts' queries meet their own keys
and the image's keys as the main pass made them. Norms, modulation, projections, gates and MLP are
thus the block's own code, and no image or prompt token ever sees a concept. The image's modulation,
output projection and MLP are left out of that run where they are its own (`idle_stream`).

Source: ConceptAttention, arXiv 2502.04320, section 4. Differs: the image's queries are not computed
a second time, so that the cost is that of the concept rows. Where somebody reads what they would
see (the published code for SD3 does), they attend to image and concepts as well, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.spec import Attention, BlockSite
from diffusion_lens.concept_streams.entering import Entrance, bound
from diffusion_lens.concept_streams.idle_stream import image_layers, left_out
from diffusion_lens.concept_streams.positions import placed_again
from diffusion_lens.concept_streams.view import CONCEPT, IMAGE_PRODUCT, joined
from diffusion_lens.engine.attention import AttentionHooks
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.handles import Handle, Removal
from diffusion_lens.engine.product import Product
from diffusion_lens.engine.projection import stream_slice
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.taps import Tap
from diffusion_lens.errors import EngineError
from diffusion_lens.showing.one_line import counted

DUMMY = 1
"""Image tokens of the second run; several families cannot run with none."""


@dataclass(frozen=True, eq=False)
class ConceptInput:
    """What the concept tokens start from.

    Attributes:
        embeddings: Text embeddings, axes batch, concept, d_text; a batch of 1 serves every image.
        pooled: The pooled text embedding of their modulation: `"zeros"`, `"prompt"` (that of each
            image), or a tensor with axes batch, d_pooled.
        position: The text token whose position they take; negative counts from the end.
    """

    embeddings: Tensor
    pooled: str | Tensor
    position: int = 0


class Captured(NamedTuple):
    """What the image brought to an attention product, axes batch, head, pos, d_head.

    Attributes:
        key: Its keys.
        value: Its values.
        query: Its queries, where somebody asks what they see.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None


class BlockAgain(nn.Module):
    """Stands for a block in its second run, so that hooks on the block itself have a place."""

    def __init__(self, block: nn.Module) -> None:
        """Keep the block without registering it."""
        super().__init__()
        self.__dict__["block"] = block

    def forward(self, **arguments: Any) -> Any:
        """Run the block without its own torch hooks."""
        return self.__dict__["block"].forward(**arguments)

    def get_submodule(self, target: str) -> nn.Module:
        """A module of the block."""
        return self.__dict__["block"].get_submodule(target)


class ConceptPass:
    """Runs the concepts through the blocks, one block behind the main pass.

    Args:
        tracker: Follows the evaluations.
        given: What the concept tokens start from.
        views: For each block, in order of execution, the block as concepts see it.
    """

    def __init__(
        self, tracker: StepTracker, given: ConceptInput, views: Mapping[BlockSite, BlockSite]
    ) -> None:
        """Plan for one session; nothing is attached yet."""
        self.tracker = tracker
        self.denoiser = tracker.denoiser
        assert tracker.spec.concepts is not None
        self.entry = tracker.spec.concepts
        self.entrance = Entrance(self.denoiser, self.entry)
        self.given = given
        self.views = dict(views)
        self.taps: list[Tap] = []
        self.captured: Captured | None = None
        self.asks_image = False
        self._running = False
        self._wanted = False
        self._rows: Tensor | None = None
        self._pooled_arguments: dict[str, Any] = {}
        self._modulation: Tensor | None = None
        self._arguments: dict[str, Any] = {}
        self._again = {
            view: BlockAgain(self.denoiser.get_submodule(view.path)) for view in views.values()
        }
        self._image_layers = {
            view: image_layers(self.denoiser, block) for block, view in views.items()
        }
        self._joined = {view: joined(block) for block, view in views.items()}

    def plan(self, taps: Mapping[str, Sequence[Tap]]) -> bool:
        """Keep the blocks up to the last one that somebody asks for; whether there are any."""
        flat: list[tuple[Any, Tap]] = [
            (getattr(tap.point.source, "block", None), tap)
            for some in taps.values()
            for tap in some
        ]
        self.taps = [tap for block, tap in flat if block in self._again]
        self.asks_image = any(
            getattr(tap.point.source, "product", 0) == IMAGE_PRODUCT for tap in self.taps
        )
        last = max((tap.point.block or 0 for tap in self.taps), default=-1)
        self.views = {block: view for block, view in self.views.items() if block.index <= last}
        return bool(self.taps)

    # -- what a session asks ------------------------------------------------------------------

    def listens(self, block: BlockSite | None) -> Callable[[], bool]:
        """Whether hooks on a block may fire: those on its view while it runs for the concepts."""
        if block in self._again:
            return lambda: self._running
        return lambda: not self._running

    def blocks(self) -> list[BlockSite]:
        """Every block that needs hooks even where nobody reads it, both ways of seeing it."""
        return [*self.views.keys(), *self.views.values()]

    def module_of(self, block: BlockSite, module: nn.Module) -> nn.Module:
        """Where hooks on the block itself go."""
        return self._again.get(block, module)

    def hooks(self, block: BlockSite, attention: Attention) -> Callable[..., AttentionHooks] | None:
        """The kind of hooks for an attention module that has a part in the streams."""
        spec = block.spec.concepts
        if block in self._again:
            return partial(AskingHooks, self, self._joined[block])
        if block in self.views and spec is not None and attention.name == spec.attention:
            return partial(CapturingHooks, self)
        return None

    def attach(self) -> Iterator[Handle]:
        """Follow the main pass; to be attached after every other hook."""
        if torch.is_grad_enabled() and getattr(self.denoiser, "is_gradient_checkpointing", False):
            raise EngineError(
                "concept streams cannot run under gradient checkpointing, which would run them "
                "again in the backward pass; call `disable_gradient_checkpointing()` first"
            )
        self.tracker.on_evaluation.append(self._begin)
        yield Removal(lambda: self.tracker.on_evaluation.remove(self._begin))
        if isinstance(self.given.pooled, Tensor) or self.given.pooled != "prompt":
            module = self.denoiser.get_submodule(self.entry.modulation)
            yield module.register_forward_pre_hook(self._keep_pooled, with_kwargs=True)
        yield from self.entrance.attach()
        for block, view in self.views.items():
            module = self.denoiser.get_submodule(block.path)
            yield module.register_forward_pre_hook(self._keep_arguments, with_kwargs=True)
            yield module.register_forward_hook(partial(self._follow, view))

    # -- one evaluation -----------------------------------------------------------------------

    def _begin(self, evaluation: Evaluation) -> None:
        self._rows = self._modulation = self.captured = None
        self._arguments, self._pooled_arguments = {}, {}
        self.entrance.clear()
        self._wanted = any(
            tap.active(evaluation, branch) for tap in self.taps for branch, _ in evaluation.rows
        )

    def _keep_pooled(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._pooled_arguments = bound(module, args, kwargs)

    def _keep_arguments(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._arguments = bound(module, args, kwargs)

    def _follow(self, view: BlockSite, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Run a block for the concepts after it has run for the image."""
        if not self._wanted:
            return
        self._running = True  # also while they enter: a refiner has modules that may be hooked
        try:
            arguments = self._arguments_of(view)
            with left_out(self._image_layers[view], lambda: self.tracker.hooks_running):
                output = self._again[view](**arguments)
        finally:
            self._running = False
            self.captured, self._arguments = None, {}
        self._rows = self._returned(view, output)

    def _returned(self, view: BlockSite, output: Any) -> Tensor | None:
        """The concepts as they leave a block."""
        stream = view.spec.streams[CONCEPT]
        if not stream.returned:
            return None
        found = output if stream.output is None else output[stream.output]
        return found[:, self._places(view)[CONCEPT]] if stream.within else found

    def lengths(self, block: BlockSite) -> Mapping[str, int] | None:
        """Token counts of a block's second run; None for the main pass."""
        if block not in self._again:
            return None
        assert self._rows is not None
        return {CONCEPT: self._rows.shape[1], "img": DUMMY}

    def _places(self, view: BlockSite) -> dict[str, slice]:
        """Where concepts and image lie in the one tensor of a block whose streams share it."""
        found, start, lengths = {}, 0, self.lengths(view)
        assert lengths is not None
        for name in view.spec.streams[CONCEPT].within:
            found[name] = slice(start, start + lengths[name])
            start += lengths[name]
        return found

    def _arguments_of(self, view: BlockSite) -> dict[str, Any]:
        given = self._arguments
        concepts = view.spec.concepts
        assert concepts is not None
        streams = view.spec.streams
        sequence = tuple("txt" if name == CONCEPT else name for name in streams["img"].within)
        image, text = self._main_streams(view, sequence)
        if self._rows is None:
            self._rows = self._entered(image)
        again = {CONCEPT: self._rows, "img": image[:, :DUMMY]}
        if sequence:
            parts = [again[name] for name in streams["img"].within]
            changed: dict[str, Any] = {streams["img"].argument: torch.cat(parts, 1)}
        else:
            changed = {streams[name].argument: value for name, value in again.items()}
        changed |= {name: None for name in concepts.masks if name in given}
        if self._pooled_arguments:
            changed[concepts.modulation] = self._own_modulation()
        counts = {"txt": (text, self._rows.shape[1]), "img": (image.shape[1], DUMMY)}
        changed |= placed_again(given, concepts.positions, counts, self.given.position)
        return given | changed

    def _main_streams(self, view: BlockSite, sequence: Sequence[str]) -> tuple[Tensor, int]:
        """The image that the main pass gave the block, and how many tokens its text has."""
        streams, given = view.spec.streams, self._arguments
        image = given[streams["img"].argument]
        if not sequence:
            return image, given[streams[CONCEPT].argument].shape[1]
        text = self.tracker.evaluation().text_length()
        start = text if sequence[0] == "txt" else 0
        return image[:, start : start + image.shape[1] - text], text

    def _entered(self, like: Tensor) -> Tensor:
        """The concepts at the residual width, one copy for each row of the batch."""
        # Kept, so that embeddings from elsewhere are waited for once and not at every step.
        moved = self.given.embeddings.to(like.device, like.dtype)
        self.given = replace(self.given, embeddings=moved)
        return self.entrance.run(self._spread(moved, "concept embeddings"), self.given.position)

    def _own_modulation(self) -> Tensor:
        """The modulation vector with the concepts' own pooled embedding, once an evaluation."""
        if self._modulation is not None:
            return self._modulation
        name = self.entry.pooled_argument
        assert name is not None
        theirs = self._pooled_arguments[name]
        pooled = torch.zeros_like(theirs)
        if isinstance(self.given.pooled, Tensor):
            moved = self.given.pooled.to(theirs)
            self.given = replace(self.given, pooled=moved)
            pooled = self._spread(moved, "pooled embeddings")
        module = self.denoiser.get_submodule(self.entry.modulation)
        found: Any = module.forward(**{**self._pooled_arguments, name: pooled})
        made: Tensor = found[0] if isinstance(found, tuple) else found
        self._modulation = made
        return made

    def _spread(self, value: Tensor, what: str) -> Tensor:
        """Rows for one image or for each, repeated over images and guidance branches."""
        evaluation = self.tracker.evaluation()
        images = evaluation.batch // len(evaluation.rows)
        if images % value.shape[0]:
            raise EngineError(
                f"{what} for a batch of {value.shape[0]} were given to a run of "
                f"{counted(images, 'image')}; "
                "give one for all of them, or one for each"
            )
        each = value.repeat_interleave(images // value.shape[0], 0)
        return torch.cat([each] * len(evaluation.rows))


class CapturingHooks(AttentionHooks):
    """Hooks of the main pass that keep the image's keys and values for the concepts' pass."""

    def __init__(self, concepts: ConceptPass, *arguments: Any) -> None:
        """Like those of any attention module."""
        super().__init__(*arguments)
        self.concepts = concepts

    def entering(self, number: int, product: Product, lengths: Mapping[str, int]) -> None:
        """Keep the image's part."""
        if number == 0:
            image = stream_slice(self.attention.keys, "img", lengths, product.key.shape[2])
            self.concepts.captured = Captured(
                product.key[:, :, image],
                product.value[:, :, image],
                product.query[:, :, image] if self.concepts.asks_image else None,
            )


class AskingHooks(AttentionHooks):
    """Hooks of the concepts' pass, which bring their queries to the image's keys."""

    def __init__(
        self, concepts: ConceptPass, joined: Sequence[str], attention: Attention, *arguments: Any
    ) -> None:
        """Like those of any attention module.

        Args:
            concepts: The pass.
            joined: Concepts and image in the order in which the family joins them.
            attention: The attention module as concepts see it.
            *arguments: Those of `AttentionHooks`.
        """
        super().__init__(attention, *arguments)
        self.concepts = concepts
        self.joined = tuple(joined)
        self._own: tuple[Tensor, Tensor] | None = None
        self._measured = self.lengths
        self.lengths = self._with_image

    def _with_image(self) -> dict[str, int]:
        """Token counts with the whole image, where the block was called with a single token."""
        assert self.concepts.captured is not None
        return {**self._measured(), "img": self.concepts.captured.key.shape[2]}

    def attend(self, call: int, product: Product) -> Tensor:
        """Attention of the concepts' rows; the image token of this run gets zeros."""
        if call > 0:
            return product.fused()
        lengths = self._with_image()
        rows = stream_slice(self.joined, CONCEPT, lengths | {"img": DUMMY}, product.key.shape[2])
        query, key, value = (
            part[:, :, rows] for part in (product.query, product.key, product.value)
        )
        self._own = key, value
        if self.attention.keys:
            z = super().attend(call, self._over(self.attention.keys, query, product))
        else:
            value = self._streams(call, "v", value, (CONCEPT,), lengths)
            self._own = key, value
            z = self._streams(call, "z", value, (CONCEPT,), lengths)
        self._image_asks(product, lengths)
        self._own = None  # they are views that would keep the keys of the image alive
        image = z.new_zeros(*z.shape[:2], DUMMY, z.shape[3])
        return torch.cat([{CONCEPT: z, "img": image}[name] for name in self.joined], 2)

    def entering(self, number: int, product: Product, lengths: Mapping[str, int]) -> None:
        """Keep the concepts' keys and values as hooks left them."""
        if number == 0 and CONCEPT in self.attention.keys:
            rows = stream_slice(self.attention.keys, CONCEPT, lengths, product.key.shape[2])
            self._own = product.key[:, :, rows], product.value[:, :, rows]

    def _over(self, streams: Sequence[str], query: Tensor, like: Product) -> Product:
        """Queries over the keys of concepts, of the image, or of both."""
        assert self.concepts.captured is not None and self._own is not None
        parts = {CONCEPT: self._own, "img": self.concepts.captured[:2]}
        keys, values = zip(*(parts[name] for name in streams), strict=True)
        key, value = torch.cat(keys, 2), torch.cat(values, 2)
        return Product(query, key, value, scale=like.scale, shared=like.shared)

    def _image_asks(self, like: Product, lengths: Mapping[str, int]) -> None:
        """Show what the image's queries see where concepts are in the place of the text."""
        evaluation = self.evaluation()
        taps = [tap for key, some in self.taps.items() if key[0] == IMAGE_PRODUCT for tap in some]
        if not any(tap.active(evaluation, branch) for tap in taps for branch, _ in evaluation.rows):
            return
        assert self.concepts.captured is not None and self.concepts.captured.query is not None
        product = self._over(self.joined, self.concepts.captured.query, like)
        output = self._output(IMAGE_PRODUCT, product, evaluation, lengths)
        self._streams(IMAGE_PRODUCT, "z", output, ("img",), lengths)
