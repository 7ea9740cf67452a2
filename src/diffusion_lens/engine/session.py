"""Attaching hooks to a model, and taking them off again.

Modules are looked up when hooks are attached, not when the model is wrapped, since LoRA and
quantisation replace them. Nothing is attached for what nobody asked for.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusion_lens.architectures.catalogue import native_points
from diffusion_lens.architectures.sources import (
    AtModule,
    AtScheduler,
    AttentionContext,
    BeforeRope,
    HeadResult,
    HeadValues,
    Neurons,
    ProductInput,
    ProductOutput,
    ProductWeights,
    StreamBetween,
    StreamEntering,
    StreamLeaving,
    SublayerOutput,
    SublayerUpdate,
)
from diffusion_lens.architectures.spec import Attention, BlockSite
from diffusion_lens.engine.attention import AttentionHooks
from diffusion_lens.engine.borders import on_argument, on_output
from diffusion_lens.engine.concept_pass import ConceptPass
from diffusion_lens.engine.firing import GUIDED, Registration, Tap, fire
from diffusion_lens.engine.handles import Handle, Removal, deaf_on_copies, gated
from diffusion_lens.engine.projection import (
    on_columns,
    on_fused_outputs,
    on_result,
    same_length,
    stream_slice,
)
from diffusion_lens.engine.residual import StreamHooks
from diffusion_lens.engine.selection import heads_in, selects
from diffusion_lens.engine.step_caches import step_cache_on
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.errors import EngineError, SiteError, closest, listing
from diffusion_lens.hook_points.names import match_names
from diffusion_lens.hook_points.point import HookPoint
from diffusion_lens.hook_points.site import Site

Fire = Callable[[Tensor], Tensor]


def expand(
    registrations: Sequence[Registration],
    points: Mapping[str, HookPoint],
    *,
    model: str,
    branches: Sequence[str],
    native: Callable[[Any], Mapping[str, HookPoint]] | None = None,
) -> dict[str, list[Tap]]:
    """Every registration at every point that its Site selects; readers come last at each.

    Raises:
        UnknownHookPointError: If a name matches nothing.
        SiteError: If the names match but the other selectors fit none of the points.
    """
    taps: dict[str, list[Tap]] = {}
    for registration in registrations:
        _refuse_unknown_branch(registration.site, branches)
        known = points if native is None else native(registration.site.name) or points
        names = match_names(registration.site.name, list(known), model=model)
        fitting = [known[name] for name in names if selects(known[name], registration.site)]
        if not fitting:
            raise SiteError(_fits_nothing(registration, known[names[0]], len(names)))
        for point in fitting:
            tap = Tap(registration, point, heads_in(point, registration.site))
            taps.setdefault(point.name, []).append(tap)
        _refuse_missing_pairs(registration.site, fitting)
    for found in taps.values():
        found.sort(key=lambda tap: tap.registration.read_only)
    return taps


def _refuse_unknown_branch(site: Site, branches: Sequence[str]) -> None:
    if site.branch is not None and site.branch not in branches:
        near = closest(site.branch, branches, count=1)
        hint = f" Closest: {near[0]!r}." if near else ""
        raise SiteError(
            f"{site!r} names the branch {site.branch!r}, this model has {tuple(branches)}.{hint} "
            "Leave branch= out for each in turn; a cache takes branch='all'."
        )


def _refuse_missing_pairs(site: Site, fitting: Sequence[HookPoint]) -> None:
    """Every (block, head) pair must have a block among the points."""
    blocks = {point.block for point in fitting}
    pairs = [pair for pair in site.heads or () if isinstance(pair, tuple)]
    missing = [pair for pair in pairs if pair[0] not in blocks]
    if missing:
        known = sorted(block for block in blocks if block is not None)
        raise SiteError(
            f"{site!r} names the (block, head) pair {missing[0]}, but matches only the blocks "
            f"{listing(known)}; widen the name or leave the pair out"
        )


def _fits_nothing(registration: Registration, first: HookPoint, count: int) -> str:
    asked = {"query": registration.site.query, "key": registration.site.key}
    asked["pos"] = registration.site.pos
    absent = [axis for axis, tokens in asked.items() if tokens and axis not in first.axes]
    if absent:
        others = [axis for axis in first.axes if axis in asked]
        return (
            f"{registration.site!r} selects nothing: it selects along {absent[0]!r}, which "
            f"{first.name} has not (axes {first.axes}); its token axes are {others or 'none'}"
        )
    streams = {axis: list(names) for axis, names in first.sequences.items()}
    heads = "no head axis" if first.heads is None else f"{first.heads} heads"
    return (
        f"{registration.site!r} selects nothing: {count} names match, but none has such tokens or "
        f"heads; {first.name} has axes {first.axes}, streams {streams}, {heads}"
    )


class Session:
    """All hooks of a model while they are attached."""

    def __init__(
        self,
        tracker: StepTracker,
        points: Mapping[str, HookPoint],
        registrations: Sequence[Registration],
        *,
        model: str,
        concepts: ConceptPass | None = None,
    ) -> None:
        """Plan what to attach; raises before anything is touched."""
        self.tracker = tracker
        self.denoiser = tracker.denoiser
        self.registrations = list(registrations)
        self.taps = expand(
            registrations,
            points,
            model=model,
            branches=tracker.known_branches(),
            native=partial(native_points, self.denoiser),
        )
        self.concepts = None
        if concepts is not None and concepts.plan(self.taps):
            self.concepts = concepts
        self._added: dict[str, dict[str, Tensor]] = {}
        self._lengths: dict[BlockSite, dict[str, int]] = {}
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Session:
        """Attach every hook; on an error the model is left as it was."""
        with contextlib.ExitStack() as stack:
            if self.taps:
                self.refuse_what_hides_hooks()
                if "torch._dynamo" in sys.modules:
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.tracker.attached())
            for handle in self._attach_gated():
                stack.callback(handle.remove)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        """Take every hook off."""
        self._exit.close()

    def refuse_what_hides_hooks(self) -> None:
        """Refuse what would keep hooks from firing.

        Raises:
            EngineError: Naming it.
        """
        cache = step_cache_on(self.denoiser)
        if cache is not None:
            raise EngineError(
                f"a diffusers cache is enabled on the denoiser ({cache}): it skips blocks, whose "
                "hooks would not fire; call `disable_cache()` first, or take off what "
                "`diffusers.hooks.apply_…` put on"
            )
        if getattr(self.denoiser, "_parallel_config", None) is not None:
            raise EngineError(
                "the denoiser runs context-parallel, where each process sees only part of the "
                "sequence; run hooked calls on one device"
            )

    # -- from points to torch hooks -----------------------------------------------------------

    def _attach_gated(self) -> Iterator[Handle]:
        """Every hook; with concept streams, each is deaf while the other pass runs."""
        concepts = self.concepts
        for block, handle in self._attach():
            deaf_on_copies(handle)
            if concepts is not None:
                listens = concepts.is_running if concepts.is_view(block) else concepts.is_waiting
                gated(handle, listens)
            yield handle
        for handle in () if concepts is None else concepts.attach():
            yield deaf_on_copies(handle)

    def _attach(self) -> Iterator[tuple[BlockSite | None, Handle]]:
        by_block: dict[BlockSite, dict[Any, list[Tap]]] = {}
        for taps in self.taps.values():
            source: Any = taps[0].point.source
            if isinstance(source, AtModule):
                yield None, self._at_module(source, taps)
            elif isinstance(source, AtScheduler):
                yield None, self._at_scheduler(source, taps)
            else:
                by_block.setdefault(source.block, {})[source] = taps
        for block in () if self.concepts is None else self.concepts.blocks():
            by_block.setdefault(block, {})
        for block, sources in by_block.items():
            for handle in self._attach_block(block, sources):
                yield block, handle

    def _at_module(self, source: AtModule, taps: Sequence[Tap]) -> RemovableHandle:
        point = source.point
        module = self.denoiser.get_submodule(point.module)

        def transform(value: Tensor) -> Tensor:
            evaluation = self.tracker.evaluation()
            sequence = taps[0].point.sequences.get("pos", ())
            lengths = dict.fromkeys(sequence, value.shape[1])
            return fire(taps, value, evaluation, lengths)

        if point.argument is not None:
            return on_argument(module, point.argument, transform)
        return on_output(module, point.output, transform)

    def _at_scheduler(self, source: AtScheduler, taps: Sequence[Tap]) -> Handle:
        def guided(prediction: Tensor, timestep: Any, sample: Tensor) -> Tensor:
            evaluation = self.tracker.evaluation()
            rows = ((GUIDED, slice(0, prediction.shape[0])),)
            lengths = {"img": prediction.shape[1]} if prediction.ndim == 3 else {}
            if source.which == "guided_pred":
                return fire(taps, prediction, evaluation, lengths, rows=rows)
            level = self.tracker.level(timestep)
            clean = level.clean(prediction, sample)
            changed = fire(taps, clean, evaluation, lengths, rows=rows)
            if changed is clean:
                return prediction
            # As a difference, so that patching in the same value again changes no bit.
            before, after = (level.prediction_for(image, sample) for image in (clean, changed))
            return prediction + (after - before).to(prediction.dtype)

        if source.which == "sample":
            return self._at_sample(taps)
        listeners = self.tracker.on_guided
        at = len(listeners) if source.which == "pred_x0" else 0
        listeners.insert(at, guided)
        return Removal(lambda: listeners.remove(guided))

    def _at_sample(self, taps: Sequence[Tap]) -> Removal:
        def sampled(sample: Tensor) -> Tensor:
            rows = ((GUIDED, slice(0, sample.shape[0])),)
            lengths = {"img": sample.shape[1]} if sample.ndim == 3 else {}
            return fire(taps, sample, self.tracker.evaluation(), lengths, rows=rows)

        self.tracker.on_sample.append(sampled)
        return Removal(lambda: self.tracker.on_sample.remove(sampled))

    def _attach_block(self, block: BlockSite, sources: Mapping[Any, list[Tap]]) -> Iterator[Handle]:
        module = self.denoiser.get_submodule(block.path)
        if getattr(module, "_chunk_size", None) is not None:
            raise EngineError(
                f"{block.path} runs its feed-forward in chunks, whose parts cannot be told apart; "
                "call `disable_forward_chunking()` first"
            )
        if self.concepts is not None:
            module = self.concepts.module_of(block, module)
        yield module.register_forward_pre_hook(self._measure(block, module), with_kwargs=True)
        streams = {name: self._stream_hooks(block, name, sources) for name in block.spec.streams}
        for hooks in streams.values():
            yield from hooks.attach_before(module)
        for attention in block.spec.attentions:
            yield from self._attach_attention(block, attention, sources)
        for name in block.spec.mlps:
            yield from self._attach_mlp(block, name, sources)
        yield from self._attach_fused(block, sources, streams)
        for hooks in streams.values():
            yield from hooks.attach_after(module)

    def _measure(self, block: BlockSite, module: nn.Module) -> Callable:
        """Note the token count of each stream when the block is called."""
        parameters = list(inspect.signature(type(module).forward).parameters)[1:]
        arguments = {name: stream.argument for name, stream in block.spec.streams.items()}

        def measure(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = dict(zip(parameters, args, strict=False)) | kwargs
            self._lengths[block] = {
                name: given[argument].shape[1]
                for name, argument in arguments.items()
                if isinstance(given.get(argument), Tensor)
            }

        return measure

    def _fire(self, block: BlockSite, taps: Sequence[Tap]) -> Fire:
        def run(value: Tensor) -> Tensor:
            lengths = dict(self._lengths[block])
            sequence = taps[0].point.sequences["pos"]
            if len(sequence) == 1:
                same_length(sequence[0], value.shape[1], lengths)
                lengths[sequence[0]] = value.shape[1]
            return fire(taps, value, self.tracker.evaluation(), lengths)

        return run

    def _stream_hooks(
        self, block: BlockSite, name: str, sources: Mapping[Any, list[Tap]]
    ) -> StreamHooks:
        fires: dict[Any, Fire] = {}
        for source, taps in sources.items():
            if getattr(source, "stream", None) != name:
                continue
            if isinstance(source, StreamEntering):
                fires["pre"] = self._fire(block, taps)
            elif isinstance(source, StreamBetween):
                fires[source.mid.name] = self._fire(block, taps)
            elif isinstance(source, StreamLeaving):
                fires["post"] = self._fire(block, taps)
            elif isinstance(source, SublayerUpdate):
                fires["update", source.sublayer] = self._fire(block, taps)
        return StreamHooks(block, name, fires, lambda: self._lengths[block])

    def _attach_attention(
        self, block: BlockSite, attention: Attention, sources: Mapping[Any, list[Tap]]
    ) -> Iterator[Handle]:
        module: Any = self.denoiser.get_submodule(block.inside(attention.module))
        heads, width = module.heads, module.inner_dim
        products = {}
        for source, taps in sources.items():
            if getattr(source, "attention", None) is not attention:
                continue
            run = None if isinstance(source, ProductWeights) else self._fire(block, taps)
            if isinstance(source, ProductInput | ProductOutput | ProductWeights):
                products[source] = taps
            elif isinstance(source, AttentionContext):
                yield on_argument(module, (attention.context or "",), run)  # type: ignore[arg-type]
            elif isinstance(source, BeforeRope):
                yield self._before_rope(block, source, run)  # type: ignore[arg-type]
            else:
                assert isinstance(source, HeadValues | HeadResult)
                projection = attention.projections[source.stream]
                target = self.denoiser.get_submodule(block.inside(projection.module))
                rows = self._rows(block, projection.streams, source.stream)
                fire_values: Any = run
                if isinstance(source, HeadValues):
                    yield on_columns(target, rows, slice(0, width), heads, fire_values)
                else:
                    note = self._note(block, source)
                    yield on_result(target, rows, width, heads, fire_values, note)
        special = None if self.concepts is None else self.concepts.hooks(block, attention)
        if products or special is not None:
            hooks = (special or AttentionHooks)(
                attention,
                products,
                lambda: self._lengths[block],
                self.tracker.evaluation,
                f"{block.prefix}.{attention.name}",
            )
            yield module.register_forward_pre_hook(hooks.enter)
            yield module.register_forward_hook(hooks.leave, always_call=True)
            yield self._leaving_after_interrupts(module, hooks)
        for source, taps in sources.items():
            if isinstance(source, SublayerOutput) and source.sublayer == attention.name:
                if attention.projections[source.stream].fused:
                    continue
                place = attention.outputs.get(source.stream)
                yield on_output(module, place, self._fire(block, taps))

    def _leaving_after_interrupts(self, module: nn.Module, hooks: AttentionHooks) -> Removal:
        """Stop to intercept where torch did not say so: it calls no hook after a Ctrl-C."""

        def leave() -> None:
            while hooks._modes:
                hooks.leave(module, None, None)

        self.tracker.on_start.append(leave)

        def remove() -> None:
            self.tracker.on_start.remove(leave)
            leave()

        return Removal(remove)

    def _before_rope(self, block: BlockSite, source: BeforeRope, run: Fire) -> RemovableHandle:
        path = source.attention.before_rope[source.stream]["qk".index(source.which)]
        module = self.denoiser.get_submodule(block.inside(path))
        modules = source.attention.before_rope.items()
        sharing = tuple(stream for stream, found in modules if path in found)
        transform = self._on_rows(block, sharing, source.stream, run)
        if not source.attention.heads_first:
            return on_output(module, None, transform)

        def transposed(value: Tensor) -> Tensor:
            shown = value.transpose(1, 2)
            after = transform(shown)
            return value if after is shown else after.transpose(1, 2)

        return on_output(module, None, transposed)

    def _on_rows(self, block: BlockSite, sequence: Sequence[str], stream: str, run: Fire) -> Fire:
        """Hooks on one stream's rows of a value that several may share."""
        rows = self._rows(block, sequence, stream)

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

    def _attach_mlp(
        self, block: BlockSite, name: str, sources: Mapping[Any, list[Tap]]
    ) -> Iterator[Handle]:
        mlp = block.spec.mlps[name]
        for source, taps in sources.items():
            if getattr(source, "stream", None) != name:
                continue
            if isinstance(source, Neurons):
                module = self.denoiser.get_submodule(block.inside(mlp.down))
                shared = mlp.module is None
                sequence = self._fused(block).streams if shared else mlp.streams or (name,)
                columns = slice(self._width(block) if shared else 0, None)
                rows = self._rows(block, sequence, name)
                yield on_columns(module, rows, columns, None, self._fire(block, taps))
            elif isinstance(source, SublayerOutput) and source.sublayer == "mlp" and mlp.module:
                module = self.denoiser.get_submodule(block.inside(mlp.module))
                run = self._on_rows(block, mlp.streams or (name,), name, self._fire(block, taps))
                yield on_output(module, None, run)

    def _attach_fused(
        self,
        block: BlockSite,
        sources: Mapping[Any, list[Tap]],
        streams: Mapping[str, StreamHooks],
    ) -> Iterator[Handle]:
        """Outputs and updates of an attention and an MLP that share one projection."""
        if all(mlp.module is not None for mlp in block.spec.mlps.values()):
            return
        fires = {
            (source.stream, source.sublayer): self._fire(block, taps)
            for source, taps in sources.items()
            if isinstance(source, SublayerOutput)
        }
        for name, hooks in streams.items():
            if hooks.follows_updates:
                for sublayer in ("attn", "mlp"):
                    fires.setdefault((name, sublayer), lambda value: value)
        if not fires:
            return
        projection = self._fused(block)
        module = self.denoiser.get_submodule(block.inside(projection.module))

        def collect(stream: str, sublayer: str, share: Tensor) -> None:
            if streams[stream].follows_updates:
                streams[stream].collect(sublayer, share)

        def lengths() -> Mapping[str, int]:
            return self._lengths[block]

        added = self._added.setdefault(block.path, {})
        width = self._width(block)
        yield on_fused_outputs(module, projection, lengths, width, fires, added, collect)

    def _note(self, block: BlockSite, source: HeadResult) -> Callable[[Tensor], None]:
        """Note what an edit of single heads added, for a projection that the MLP shares."""
        added = self._added.setdefault(block.path, {})
        fused = source.attention.projections[source.stream].fused

        def note(change: Tensor) -> None:
            if fused:
                added[source.stream] = change

        return note

    def _fused(self, block: BlockSite) -> Any:
        projections = block.spec.attentions[0].projections
        return next(iter(projections.values()))

    def _width(self, block: BlockSite) -> int:
        attention = self.denoiser.get_submodule(block.inside(block.spec.attentions[0].module))
        return attention.inner_dim  # type: ignore[return-value]

    def _rows(self, block: BlockSite, sequence: Sequence[str], stream: str) -> Callable:
        def rows(total: int) -> slice:
            return stream_slice(sequence, stream, self._lengths[block], total)

        return rows
