"""The hooks of one block: for each kind of source what reads it, in one table.

Torch calls the hooks of one module in the order in which they were attached; `BlockHooks.attach`
says that order. Sources of a stream, of an attention product and of a projection that attention and
MLP share are read together, each by a class or function of its own module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.sources import (
    AttentionContext,
    BeforeRope,
    HeadResult,
    HeadValues,
    Neurons,
    ProductInput,
    ProductOutput,
    ProductWeights,
    Routing,
    StreamBetween,
    StreamEntering,
    StreamLeaving,
    SublayerOutput,
    SublayerUpdate,
)
from diffusion_lens.architectures.spec import Attention, BlockSite, Mlp, Projection
from diffusion_lens.engine.attention import AttentionHooks
from diffusion_lens.engine.borders import on_argument, on_output
from diffusion_lens.engine.calls import Calls
from diffusion_lens.engine.companion import SecondPass
from diffusion_lens.engine.firing import fire
from diffusion_lens.engine.handles import Handle, Removal
from diffusion_lens.engine.projection import (
    Fire,
    on_batch_first,
    on_columns,
    on_fused_outputs,
    on_result,
    on_swapped,
    on_tokens,
    same_length,
    stream_slice,
)
from diffusion_lens.engine.residual import StreamHooks
from diffusion_lens.engine.routing import RouterHooks, on_samples
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.taps import Tap
from diffusion_lens.errors import EngineError

Sources = Mapping[Any, Sequence[Tap]]
"""The hooks of a block, by the source of their hook point."""


class BlockHooks:
    """The hooks of one block, and what they share while it runs.

    Attributes:
        tracker: Follows the evaluations.
        block: The block.
        sources: The hooks.
        second: A second pass that has a part in some of its attentions.
        lengths: Token count of each stream, in the call that is running.
        added: What edits of single heads added to a projection that the MLP shares, by stream.
    """

    def __init__(
        self,
        tracker: StepTracker,
        block: BlockSite,
        sources: Sources,
        second: SecondPass | None = None,
    ) -> None:
        """Prepare; nothing is attached yet."""
        self.tracker = tracker
        self.block = block
        self.sources = sources
        self.second = second
        self.lengths: dict[str, int] = {}
        self.added: dict[str, Tensor] = {}

    def attach(self) -> Iterator[Handle]:
        """Attach all of them.

        Raises:
            EngineError: If the block runs its feed-forward in chunks.
        """
        module = self._module()
        streams = {name: self._stream_hooks(name) for name in self.block.spec.streams}
        yield module.register_forward_pre_hook(self._measure(module), with_kwargs=True)
        for hooks in streams.values():
            yield from hooks.attach_before(module)
        for kind, read in READERS.items():
            for source, taps in self._of(kind):
                yield read(self, source, self.fire(taps))
        for attention in self.block.spec.attentions:
            yield from self._products(attention)
        for source, taps in self._of(Routing):
            yield from self._routing(source, self.fire(taps))
        for source, taps in self._of(SublayerOutput):
            yield from _sublayer_output(self, source, self.fire(taps))
        yield from self._fused_outputs(streams)
        for hooks in streams.values():
            yield from hooks.attach_after(module)

    # -- what readers use ---------------------------------------------------------------------

    def part(self, path: str) -> Any:
        """A module of the block."""
        return self.tracker.module(self.block.inside(path), of=self.block.prefix)

    def fire(self, taps: Sequence[Tap]) -> Fire:
        """What calls hooks with a value."""

        def run(value: Tensor) -> Tensor:
            lengths = dict(self.lengths)
            sequence = taps[0].point.sequences.get("pos", ())
            if len(sequence) == 1:
                same_length(sequence[0], value.shape[1], lengths)
                lengths[sequence[0]] = value.shape[1]
            return fire(taps, value, self.tracker.evaluation(), lengths)

        return run

    def rows(self, sequence: Sequence[str], stream: str) -> Callable[[int], slice]:
        """Where a stream lies along a sequence, given the sequence's length."""
        return lambda total: stream_slice(sequence, stream, self.lengths, total)

    def on_rows(self, sequence: Sequence[str], stream: str, run: Fire) -> Fire:
        """Hooks on one stream's rows of a value that several may share."""
        rows = self.rows(sequence, stream)

        def transform(value: Tensor) -> Tensor:
            at = rows(value.shape[1])
            part = value if at == slice(0, value.shape[1]) else value[:, at]
            after = run(part)
            if after is part:
                return value
            out = value.clone()
            out[:, at] = after
            return out

        return transform

    @property
    def fused(self) -> Projection:
        """The projection that attention and MLP share."""
        return next(iter(self.block.spec.attentions[0].projections.values()))

    @property
    def width(self) -> int:
        """Number of its input columns that belong to the heads."""
        attention = self.block.spec.attentions[0]
        heads, d_head = attention.head_sizes(self.part(attention.module))
        return heads * d_head

    # -- what is read together ----------------------------------------------------------------

    def _module(self) -> nn.Module:
        module = self.tracker.module(self.block.path, of=self.block.prefix)
        if getattr(module, "_chunk_size", None) is not None:
            raise EngineError(
                f"{self.block.path} runs its feed-forward in chunks, whose parts cannot be told "
                "apart; call `disable_forward_chunking()` first"
            )
        return module if self.second is None else self.second.module_of(self.block, module)

    def _of(self, kind: type) -> list[tuple[Any, Sequence[Tap]]]:
        return [(source, taps) for source, taps in self.sources.items() if type(source) is kind]

    def _measure(self, module: nn.Module) -> Callable:
        """Note the token count of each stream when the block is called."""
        parameters = list(inspect.signature(type(module).forward).parameters)[1:]
        streams = self.block.spec.streams.items()
        arguments = {name: (one.argument, not one.positions_first) for name, one in streams}

        def measure(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = dict(zip(parameters, args, strict=False)) | kwargs
            found = {
                name: given[argument].shape[axis]
                for name, (argument, axis) in arguments.items()
                if isinstance(given.get(argument), Tensor)
            }
            self.lengths = self._apart(found)

        return measure

    def _apart(self, found: dict[str, int]) -> dict[str, int]:
        """Token counts where streams share a tensor: the text has its own, the image the rest.

        Raises:
            EngineError: If the text alone is longer than the sequence, or if texts that a refiner
                is given differ in length, so that shorter ones are padded there.
        """
        sharing = next((one.within for one in self.block.spec.streams.values() if one.within), ())
        if not sharing:
            if self.block.refines and "txt" in found:
                self.tracker.evaluation().text_length()
            return found
        own = None if self.second is None else self.second.lengths(self.block)
        if own is not None:
            return {**found, **own}
        evaluation = self.tracker.evaluation()
        text, total = evaluation.text_length(), found[sharing[0]]
        least = 0 if evaluation.of else 1  # a second denoiser may be that without text
        if not least <= text < total:
            raise EngineError(
                f"{self.block.path} got {total} tokens, of which {text} should be text: the "
                f"description of {self.tracker.spec.denoiser} tells their number wrongly"
            )
        return found | {name: text if name == "txt" else total - text for name in sharing}

    def _stream_hooks(self, name: str) -> StreamHooks:
        fires = {
            key(source): self.fire(taps)
            for kind, key in STREAM_KEYS.items()
            for source, taps in self._of(kind)
            if source.stream == name
        }
        return StreamHooks(self.block, name, fires, self.on_rows, lambda: self.lengths)

    def _products(self, attention: Attention) -> Iterator[Handle]:
        products = {
            source: list(taps)
            for kind in PRODUCTS
            for source, taps in self._of(kind)
            if source.attention is attention
        }
        special = None if self.second is None else self.second.hooks(self.block, attention)
        if not products and special is None:
            return
        module = self.part(attention.module)
        hooks = (special or AttentionHooks)(
            attention,
            products,
            lambda: self.lengths,
            self.tracker.evaluation,
            f"{self.block.prefix}.{attention.name}",
        )
        yield from self._listening(module, hooks)

    def _routing(self, source: Routing, run: Fire) -> Iterator[Handle]:
        mlp = self.block.spec.mlps[source.stream]
        router = mlp.router
        assert router is not None  # the catalogue has no such point otherwise
        if source.which != "choice" or router.chooser == "token":
            run = self.on_rows(mlp.streams or (source.stream,), source.stream, run)
        module = self.part(router.module)

        def batch() -> int:
            return self.tracker.evaluation().batch

        if source.which == "weights":
            yield on_output(module, router.weights, on_samples(batch, run))
        elif source.which == "logits" and router.logits is not None:
            yield on_output(self.part(router.logits), None, on_samples(batch, run))
        else:
            yield from self._listening(module, RouterHooks(source.which, batch, run))

    def _listening(
        self, module: nn.Module, hooks: AttentionHooks | RouterHooks
    ) -> Iterator[Handle]:
        yield module.register_forward_pre_hook(hooks.enter)
        yield module.register_forward_hook(hooks.leave, always_call=True)
        yield self._leaving_after_interrupts(module, hooks)

    def _leaving_after_interrupts(
        self, module: nn.Module, hooks: AttentionHooks | RouterHooks
    ) -> Removal:
        """Stop to intercept where torch did not say so: it calls no hook after a Ctrl-C."""

        def leave() -> None:
            while hooks._modes:
                hooks.leave(module, None, None)

        self.tracker.on_start.append(leave)

        def remove() -> None:
            self.tracker.on_start.remove(leave)
            leave()

        return Removal(remove)

    def _fused_outputs(self, streams: Mapping[str, StreamHooks]) -> Iterator[Handle]:
        """Outputs and updates of an attention and an MLP that share one projection."""
        if all(mlp.module is not None for mlp in self.block.spec.mlps.values()):
            return
        fires = {
            (source.stream, source.sublayer): self.fire(taps)
            for source, taps in self._of(SublayerOutput)
        }
        for name, hooks in streams.items():
            if hooks.follows_updates:
                for sublayer in ("attn", "mlp"):
                    fires.setdefault((name, sublayer), lambda value: value)
        if not fires:
            return

        def collect(stream: str, sublayer: str, share: Tensor) -> None:
            if streams[stream].follows_updates:
                streams[stream].collect(sublayer, share)

        module, lengths = self.part(self.fused.module), lambda: self.lengths
        yield on_fused_outputs(module, self.fused, lengths, self.width, fires, self.added, collect)


# -- readers of single sources ----------------------------------------------------------------


def _context(at: BlockHooks, source: AttentionContext, run: Fire) -> Handle:
    attention = source.attention

    def behind_image(value: Tensor) -> Tensor:
        """Show the text alone where an image goes before it in the same argument (Wan)."""
        text = value[:, value.shape[1] - at.tracker.evaluation().text_length() :]
        after = run(text)
        if after is text:
            return value
        return torch.cat([value[:, : value.shape[1] - text.shape[1]], after], 1)

    shown = run if attention.products[0] == "" else behind_image
    return on_argument(at.part(attention.module), (attention.context or "",), shown)


def _before_rope(at: BlockHooks, source: BeforeRope, run: Fire) -> Handle:
    modules = source.attention.before_rope
    path = modules[source.stream]["qk".index(source.which)]
    assert path is not None  # the catalogue has no such point otherwise
    sharing = tuple(stream for stream, found in modules.items() if path in found)
    transform = at.on_rows(sharing, source.stream, run)
    attention = source.attention
    if attention.heads_joined:
        heads, _ = attention.head_sizes(at.part(attention.module))
        return on_output(at.part(path), None, _unjoined(transform, heads))
    if attention.heads_first:
        transform = on_swapped(1, 2, transform)
    return on_output(at.part(path), None, transform)


def _unjoined(transform: Fire, heads: int) -> Fire:
    """A transform with a head axis on a value whose heads lie side by side."""

    def joined(value: Tensor) -> Tensor:
        shown = value.unflatten(-1, (heads, -1))
        after = transform(shown)
        return value if after is shown else after.flatten(-2)

    return joined


def _head_values(at: BlockHooks, source: HeadValues, run: Fire) -> Handle:
    heads, d_head, projection = _heads_of(at, source)
    rows = at.rows(projection.streams, source.stream)
    columns = slice(0, heads * d_head)
    return on_columns(at.part(projection.module), rows, columns, heads, run)


def _head_result(at: BlockHooks, source: HeadResult, run: Fire) -> Handle:
    heads, d_head, projection = _heads_of(at, source)
    rows = at.rows(projection.streams, source.stream)

    def note(change: Tensor) -> None:
        if projection.fused:
            at.added[source.stream] = change

    target = at.part(projection.module)
    return on_result(target, rows, heads * d_head, heads, run, note)


def _heads_of(at: BlockHooks, source: HeadValues | HeadResult) -> tuple[int, int, Projection]:
    attention = source.attention
    heads, d_head = attention.head_sizes(at.part(attention.module))
    return heads, d_head, attention.projections[source.stream]


def _neurons(at: BlockHooks, source: Neurons, run: Fire) -> Handle:
    mlp = at.block.spec.mlps[source.stream]
    assert mlp.down is not None  # the catalogue has no neurons otherwise
    if mlp.maps:
        return on_argument(at.part(mlp.down), (0,), on_tokens(mlp.maps, run))
    if at.block.spec.streams[source.stream].positions_first:
        rows = at.on_rows(mlp.streams, source.stream, run)
        return on_argument(at.part(mlp.down), (0,), on_batch_first(rows, positions_first=True))
    shared = mlp.module is None
    sequence = at.fused.streams if shared else mlp.streams or (source.stream,)
    columns = slice(at.width if shared else 0, None)
    rows = at.rows(sequence, source.stream)
    if mlp.call is not None:
        rows, run = (lambda total: slice(0, total)), _in_turn(at, mlp, run)
    return on_columns(at.part(mlp.down), rows, columns, None, run)


def _in_turn(at: BlockHooks, mlp: Mlp, run: Fire) -> Fire:
    """Hooks at the one call of an MLP that serves the stream."""
    if mlp.call is None:
        return run
    calls = Calls(at.block.spec, mlp)
    return lambda value: run(value) if calls.is_ours() else value


def _sublayer_output(at: BlockHooks, source: SublayerOutput, run: Fire) -> Iterator[Handle]:
    """Of a sublayer with a module of its own; `BlockHooks` reads the others together."""
    if source.sublayer == "mlp":
        mlp = at.block.spec.mlps[source.stream]
        if mlp.module is not None:
            sequence = mlp.streams or (source.stream,)
            run = _in_turn(at, mlp, at.on_rows(sequence, source.stream, run))
            swapped = at.block.spec.streams[source.stream].positions_first
            run = on_batch_first(on_tokens(mlp.maps, run), positions_first=swapped)
            yield on_output(at.part(mlp.module), None, run)
        return
    attention = at.block.spec.attention(source.sublayer)
    if not attention.projections[source.stream].fused:
        place = attention.outputs.get(source.stream)
        if place is None:
            sequence = attention.projections[source.stream].streams
            run = at.on_rows(sequence, source.stream, run)
        yield on_output(at.part(attention.module), place, run)


READERS: dict[type, Callable[[BlockHooks, Any, Fire], Handle]] = {
    AttentionContext: _context,
    BeforeRope: _before_rope,
    HeadValues: _head_values,
    HeadResult: _head_result,
    Neurons: _neurons,
}
"""What reads each kind of source that is read alone."""

STREAM_KEYS: dict[type, Callable[[Any], Any]] = {
    StreamEntering: lambda _source: "pre",
    StreamBetween: lambda source: source.mid.name,
    StreamLeaving: lambda _source: "post",
    SublayerUpdate: lambda source: ("update", source.sublayer),
}
"""What `StreamHooks` calls each kind of source of a stream."""

PRODUCTS = (ProductInput, ProductOutput, ProductWeights)
"""The kinds that `AttentionHooks` reads."""
