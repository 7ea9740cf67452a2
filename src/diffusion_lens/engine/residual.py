"""The residual stream of one block: entering, between sublayers, leaving, and the updates to it.

Between sublayers the residual is no module's output; it is an argument of the next norm, and the
block adds to that very tensor later. An edit is therefore written into it in place, so that the
norm and the skip path both see it. Where the norm gets a copy, the edit is carried to the next
place at which the residual is in reach. An edited update replaces the sum: what entered plus the
updates, added in the block's own order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusion_lens.architectures.spec import BlockSite, Gate, Mid, Stream
from diffusion_lens.engine.borders import on_argument, on_output
from diffusion_lens.engine.calls import Calls
from diffusion_lens.engine.gates import AS_OUTPUTS, factor_of
from diffusion_lens.engine.projection import Fire, on_batch_first, stream_slice, tokens_of
from diffusion_lens.errors import EngineError


class StreamHooks:
    """The hooks on one residual stream of one block.

    Attributes:
        block: The block.
        stream: Its description of the stream.
        fires: The hooks, by `"pre"`, `"post"`, a mid's name, or `("update", sublayer)`.
        on_rows: Makes hooks on one stream's rows of what several streams share.
        lengths: Gives the token count of each stream while the block runs.
    """

    def __init__(
        self,
        block: BlockSite,
        name: str,
        fires: Mapping[Any, Fire],
        on_rows: Callable[[Sequence[str], str, Fire], Fire],
        lengths: Callable[[], Mapping[str, int]],
    ) -> None:
        """Prepare for one stream; nothing is attached yet."""
        self.block = block
        self.name = name
        self.stream: Stream = block.spec.streams[name]
        self.fires = fires
        self.on_rows = on_rows
        self.lengths = lengths
        self._entered: Tensor | None = None
        self._carried = False
        """Whether an edit has reached a copy of the residual, and not the residual yet."""
        self._gates: dict[Gate, Tensor] = {}
        self._waiting: dict[str, Tensor] = {}
        self._updates: dict[str, Tensor] = {}
        self._edits: dict[str, Tensor] = {}
        self._beside: list[Tensor] = []

    @property
    def called(self) -> str:
        """What messages call the block."""
        return f"{'refiner' if self.block.refines else 'block'} {self.block.index}"

    @property
    def follows_updates(self) -> bool:
        """Whether the sums must be followed: a hook is on an update, or on a copy of a sum."""
        copies = {mid.name for mid in self.stream.mids if mid.copied}
        return any(isinstance(key, tuple) or key in copies for key in self.fires)

    def attach_before(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Attach what must run before the block's sublayers."""
        if "pre" in self.fires:
            if self.stream.entrance is not None:
                # An edit in place must not reach what else holds the block's argument.
                yield on_argument(module, (self.stream.argument,), torch.clone)
            yield self._attach_entrance(module, self.fires["pre"])
        if not self.follows_updates:
            return
        yield self._attach_entrance(module, self._enter)
        gates = dict.fromkeys(self._gate(sublayer) for sublayer in self._sublayers())
        for gate in filter(None, gates):
            if gate.argument is not None:
                yield on_argument(module, (gate.argument,), self._keep_argument(gate, module))
            elif gate.module:
                source = module.get_submodule(gate.module)
                yield source.register_forward_hook(self._keep_output(gate, module))

    def attach_after(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Attach what must run after the sublayers' own hooks."""
        if self.follows_updates:
            yield from self._attach_sublayers(module)
        for mid in self.stream.mids:
            if mid.name in self.fires or self.follows_updates:
                yield self._attach_mid(module.get_submodule(mid.module), mid)
        if self.follows_updates and self.stream.returned:
            yield on_output(module, self.stream.output, self._mine(self._leave))
        if "post" in self.fires:
            yield on_output(module, self.stream.output, self._mine(self.fires["post"]))

    def collect(self, sublayer: str, raw: Tensor) -> None:
        """Take a sublayer's raw output: form its update and run the hooks on it."""
        gate = self._gate(sublayer)
        update = raw
        if gate is not None and gate.has_factor:
            if gate not in self._gates:
                self._waiting[sublayer] = raw  # HunyuanVideo's refiners make it behind the sublayer
                return
            update = self._factor(gate, raw) * raw
            if update.shape != raw.shape:
                raise EngineError(
                    f"{self.block.path}: the gate on {sublayer!r} has shape "
                    f"{tuple(self._gates[gate].shape)} where the output has {tuple(raw.shape)}: "
                    f"this way of calling {self.called} is not described. {AS_OUTPUTS}"
                )
        fire = self.fires.get(("update", sublayer))
        after = update if fire is None else fire(update)
        self._updates[sublayer] = after
        if after is not update:
            self._edits[sublayer] = after - update

    def _factor(self, gate: Gate, raw: Tensor) -> Tensor:
        """A gate's factor at this stream's tokens, where it has one for each token of all."""
        factor = _beside(self._gates[gate], raw)
        if not self.stream.within or factor.shape[1] == 1:
            return factor
        rows = stream_slice(self.stream.within, self.name, self.lengths(), factor.shape[1])
        return factor[:, rows]

    def _mine(self, transform: Fire) -> Fire:
        """A transform of this stream's rows of a tensor that several may share."""
        shared = self.stream.within
        mine = self.on_rows(shared, self.name, transform) if shared else transform
        return on_batch_first(mine, positions_first=self.stream.positions_first)

    def _sublayers(self) -> tuple[str, ...]:
        between = tuple(name for mid in self.stream.mids for name in mid.updates)
        return (*between, *self.stream.updates)

    def _gate(self, sublayer: str) -> Gate | None:
        if sublayer == "mlp":
            return self.block.spec.mlps[self.name].gate
        return self.block.spec.attention(sublayer).gates.get(self.name)

    def _enter(self, value: Tensor) -> Tensor:
        self._entered = value
        self._carried = False
        self._gates, self._waiting = {}, {}
        self._updates, self._edits, self._beside = {}, {}, []
        return value

    def _keep_output(self, gate: Gate, block: nn.Module) -> Callable:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            if gate in self._gates:
                raise EngineError(
                    f"{self.block.path}.{gate.module} ran twice, so that tokens have gates of "
                    f"their own: this way of calling {self.called} is not described. {AS_OUTPUTS}"
                )
            self._gates[gate] = factor_of(gate, block, output)
            for sublayer in [one for one in self._waiting if self._gate(one) == gate]:
                self.collect(sublayer, self._waiting.pop(sublayer))

        return keep

    def _keep_argument(self, gate: Gate, block: nn.Module) -> Fire:
        def keep(value: Tensor) -> Tensor:
            factor = factor_of(gate, block, value)
            swapped = self.stream.positions_first and factor.ndim == 3
            self._gates[gate] = factor.transpose(0, 1) if swapped else factor
            return value

        return keep

    def _attach_sublayers(self, module: nn.Module) -> Iterator[RemovableHandle]:
        for sublayer in self._sublayers():
            place: int | None = None
            if sublayer == "mlp":
                path = self.block.spec.mlps[self.name].module
            else:
                attention = self.block.spec.attention(sublayer)
                fused = attention.projections[self.name].fused
                path = None if fused else attention.module
                place = attention.outputs.get(self.name)
            if path is None:
                continue
            gate = self._gate(sublayer)
            norm = None if gate is None else gate.norm
            source = module.get_submodule(norm or path)
            yield source.register_forward_hook(self._take(sublayer, None if norm else place))

    def _take(self, sublayer: str, place: int | None) -> Callable:
        mlp = self.block.spec.mlps[self.name]
        outputs, shared = 1, mlp.streams
        calls = Calls(self.block.spec, mlp if sublayer == "mlp" else None)
        if sublayer != "mlp":
            attention = self.block.spec.attention(sublayer)
            outputs = len(attention.queries)
            shared = attention.projections[self.name].streams if place is None else ()

        def take(_module: nn.Module, _args: Any, output: Any) -> None:
            if not calls.is_ours():
                return
            if sublayer == "mlp":
                output = tokens_of(output, mlp.maps)
                output = output.transpose(0, 1) if self.stream.positions_first else output
            if isinstance(output, Tensor):
                sequence = shared or (self.name,)
                rows = stream_slice(sequence, self.name, self.lengths(), output.shape[1])
                self.collect(sublayer, output[:, rows])
                return
            self.collect(sublayer, output[place or 0])
            # Image prompts come as further outputs, which the block adds to the image by itself.
            if self.name == "img":
                self._beside += output[outputs:]

        return take

    def _sum(self, updates: tuple[str, ...], value: Tensor) -> Tensor:
        """The residual with edited updates; `value` itself where none was edited."""
        edits = [self._edits[name] for name in updates if name in self._edits]
        if not edits and not self._carried:
            return value
        if self._in_parallel():  # one sum of both, which the block has rounded in its own way
            for edit in edits:
                value = value + edit
            return value
        assert self._entered is not None
        total = self._entered
        for name in updates:
            total = total + self._updates[name]
        return total.to(self._entered.dtype).to(value.dtype)

    def _in_parallel(self) -> bool:
        return not self.stream.mids and len(self.stream.updates) > 1

    def _attach_entrance(self, block: nn.Module, run: Fire) -> RemovableHandle:
        if self.stream.entrance is None:
            return on_argument(block, (self.stream.argument,), self._mine(run))

        def entering(value: Tensor) -> Tensor:
            after = run(value)
            if after is not value:
                value.copy_(after)  # in place: the block adds to this very tensor later
            return value

        module = block.get_submodule(self.stream.entrance)
        return on_argument(module, (0,), self._mine(entering))

    def _attach_mid(self, module: nn.Module, mid: Mid) -> RemovableHandle:
        fire = self.fires.get(mid.name, lambda value: value)

        def between(value: Tensor) -> Tensor:
            if mid.copied:
                return self._in_copy(value, mid, fire)
            after = fire(self._sum(mid.updates, value))
            if mid.beside:
                for name in mid.updates:
                    self._edits.pop(name, None)
                return after
            if after is not value:
                value.copy_(after)  # in place: the block adds to this very tensor later
            if self.follows_updates:
                self._entered = value
            return value

        return on_argument(module, (mid.argument,), self._mine(between))

    def _in_copy(self, value: Tensor, mid: Mid, fire: Fire) -> Tensor:
        """Hooks at a copy of the residual; an edit goes on to the residual itself."""
        assert self._entered is not None
        residual = value.to(self._entered.dtype)
        after = self._entered = fire(self._sum(mid.updates, residual))
        if after is residual:
            return value
        self._carried = True
        return after.to(value.dtype)

    def _leave(self, value: Tensor) -> Tensor:
        after = self._sum(self.stream.updates, value)
        if after is not value:
            for beside in self._beside:
                after = after + beside
            if value.dtype == torch.float16 and self.stream.clamped:
                after = after.clamp(-65504, 65504)
        self._entered, self._carried = None, False
        self._gates, self._waiting = {}, {}
        self._updates, self._edits, self._beside = {}, {}, []
        return after


def _beside(gate: Tensor, raw: Tensor) -> Tensor:
    """A gate [batch, d_model] broadcast over tokens."""
    return gate.unsqueeze(1) if gate.ndim == raw.ndim - 1 else gate
