"""Clause 7: what is called img comes from the latents, and what is called txt from the text.

What belongs to which stream is found out without the engine's own slicing: one stream is disturbed
at the denoiser's arguments and at the entrance of every block, and whatever moves belongs to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.catalogue import head_sizes
from diffusion_lens.architectures.sources import ProductInput, StreamEntering
from diffusion_lens.architectures.spec import Attention, BlockSite
from diffusion_lens.hook_points import HookContext
from diffusion_lens.testing.clauses_products import head_factors
from diffusion_lens.testing.comparing import same_effect
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Hook, Subject, disturbed, noise_like
from diffusion_lens.testing.weights import is_editable, scaled_rows, scaled_tokens

VALUE_PROJECTIONS = ("to_v", "to_v_t", "add_v_proj", "to_value")
"""What diffusers calls the layers that make v."""

FUSED_PROJECTIONS = (
    "to_qkv",
    "to_qkv_mlp_proj",
    "img_attn_qkv",
    "txt_attn_qkv",
    "img_qkv_proj",
    "txt_kv_proj",
)
"""Those that make q, k and v, in this order, and may go on with the MLP's neurons."""


@dataclass
class Reaction:
    """What moves when one stream is disturbed.

    Attributes:
        entered: For each stream of the first block, whether it moves.
        inputs: For each q, k and v point, which of its tokens move.
        projections: For each value projection (by path), which tokens of its output move.
    """

    entered: dict[str, bool]
    inputs: dict[str, Tensor]
    projections: dict[str, Tensor]


def streams_are_what_they_are_called(subject: Subject, findings: Findings) -> None:
    """Clause 7: every q, k and v moves with its own stream, in each token, and with no other.

    Then scaling a stream's v by a hook, head by head and the first to zero, must equal scaling the
    rows (and bias) of the layer that was seen to make it, or its output at the tokens that were
    seen to move where streams share a layer.
    """
    reactions = {stream: _disturb(subject, findings, stream) for stream in _streams(subject)}
    for stream, reaction in reactions.items():
        for entered, moves in reaction.entered.items():
            _check_moves(findings, entered, moves=moves, own=_stream_of(entered) == stream,
                         of=1, disturbed=stream, count=int(moves))  # fmt: skip
        for name, tokens in reaction.inputs.items():
            own = subject.points[name].stream == stream
            count = int(tokens.sum())
            _check_moves(findings, name, moves=count == len(tokens) if own else count > 0,
                         own=own, of=len(tokens), disturbed=stream, count=count)  # fmt: skip
    for block in subject.blocks:
        for attention in block.spec.attentions:
            for stream in attention.keys:
                if f"{block.prefix}.{attention.name}.{stream}.hook_v" in subject.sample:
                    _v_is_its_projection(subject, findings, block, attention, stream, reactions)


def _streams(subject: Subject) -> dict[str, str]:
    """Streams with the denoiser's argument that each comes from."""
    spec = subject.model.spec
    arguments = {"img": spec.latents, "txt": spec.text, **spec.further}
    return {stream: name for stream, name in arguments.items() if name in subject.inputs}


def _stream_of(entrance: str) -> str:
    return entrance.split(".")[-2]


def _check_moves(
    findings: Findings, where: str, *, moves: bool, own: bool, of: int, disturbed: str, count: int
) -> None:
    what = "all of it" if own else "nothing"
    findings.check(
        moves == own,
        7,
        where,
        expected=f"{what} to move when only {disturbed} is disturbed",
        found=f"{count} of {of} moved",
    )


class _Hold:
    """A hook that puts every entering stream back to its plain value, one of them disturbed."""

    def __init__(self, plain: dict[str, Tensor], stream: str) -> None:
        self.plain = plain
        self.stream = stream
        self.moved: dict[str, bool] = {}

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:
        plain = self.plain[hook.name]
        self.moved[hook.name] = not torch.equal(activation, plain)
        own = hook.stream == self.stream
        return plain + noise_like(plain, hook.name) if own else plain


def _disturb(subject: Subject, findings: Findings, stream: str) -> Reaction:
    """Disturb one stream at the arguments and at the entrance of every block, hold the others."""
    entering = [name for name, p in subject.points.items() if isinstance(p.source, StreamEntering)]
    products = [name for name in subject.points if _is_local(subject, name)]
    seen_before: dict[str, Tensor] = {}
    seen_after: dict[str, Tensor] = {}
    with _Watching(subject, seen_before):
        before = subject.record([*entering, *products]).values()
    hold = _Hold(before, stream)
    argument = _streams(subject)[stream]
    edits: list[Hook] = [(name, hold) for name in entering]
    beside = subject.model.spec.text_beside if stream == "txt" else ()
    changes = {name: disturbed(subject.inputs[name], name) for name in (argument, *beside)}
    with _holding_pooled(subject, findings, changes), _Watching(subject, seen_after):
        after = subject.record(products, edits, changes=changes).values()
    first = [name for name in entering if subject.points[name].block in (0, None)]
    return Reaction(
        entered={name: hold.moved[name] for name in first},
        inputs={name: _moved(before[name].flatten(2), after[name].flatten(2)) for name in products},
        projections={
            path: _moved(seen_before[path], seen_after[path])
            for path in seen_before.keys() & seen_after.keys()
        },
    )


@contextlib.contextmanager
def _holding_pooled(
    subject: Subject, findings: Findings, changes: Mapping[str, Any]
) -> Iterator[None]:
    """Keep what is pooled of disturbed text as it was, so that the text moves the image no more.

    Only one vector for each sample may be held: what has a value for each token is a stream.
    """
    pooled = subject.model.spec.pooled
    paths = dict.fromkeys(path for argument, path in pooled.items() if argument in changes)
    plain: dict[str, Tensor] = {}
    moved: dict[str, bool] = {}

    def keep(path: str) -> Any:
        return lambda _module, _args, output: plain.update({path: output.clone()})

    def hold(path: str) -> Any:
        def held(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            moved[path] = not torch.equal(output, plain[path])
            return plain[path]

        return held

    modules = {path: subject.denoiser.get_submodule(path) for path in paths}
    with _hooked({modules[path]: keep(path) for path in paths}):
        subject.run() if paths else None
    with _hooked({modules[path]: hold(path) for path in paths}):
        yield
    samples = len(subject.inputs[subject.model.spec.latents])
    for path in paths:
        shape, moves = list(plain[path].shape), moved.get(path, False)
        findings.check(
            shape[:-1] == [samples] and moves,
            7,
            path,
            expected="one vector for each sample, which moves with the text",
            found=f"shape {shape}, {'moved' if moves else 'held still'}",
        )


@contextlib.contextmanager
def _hooked(hooks: Mapping[nn.Module, Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """Which tokens differ, in any sample and channel."""
    return (before != after).any(-1).any(0)


def _is_local(subject: Subject, name: str) -> bool:
    """Whether a point is a q, k or v that nothing but its own stream has entered."""
    source = subject.points[name].source
    if not isinstance(source, ProductInput):
        return False
    spec = source.block.spec
    if source.stream not in spec.streams:
        return True
    for mid in spec.streams[source.stream].mids:
        if source.attention.name in mid.updates:
            return True
        earlier = [spec.attention(one) for one in mid.updates if one != "mlp"]
        if any(len({*one.queries, *one.keys}) > 1 for one in earlier):
            return False
    return True


class _Watching:
    """Record the outputs of all value projections by torch hooks of our own."""

    def __init__(self, subject: Subject, seen: dict[str, Tensor]) -> None:
        self.subject = subject
        self.seen = seen
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for path, module in _value_projections(self.subject):
            self.handles.append(module.register_forward_hook(self._keep(path)))

    def __exit__(self, *_error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self, path: str) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.seen[path] = output.detach().clone()

        return keep


def _value_projections(subject: Subject) -> Iterator[tuple[str, nn.Module]]:
    for block in subject.blocks:
        for attention in block.spec.attentions:
            path = block.inside(attention.module)
            module = subject.denoiser.get_submodule(path)
            for name in (*VALUE_PROJECTIONS, *FUSED_PROJECTIONS):
                found = getattr(module, name, None)
                if isinstance(found, nn.Module):
                    yield f"{path}.{name}", found


class _Scale:
    """A hook that scales every head of v by its factor."""

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors

    def __call__(self, activation: Tensor, _hook: HookContext) -> Tensor:
        return activation * self.factors.to(activation)[:, None]


def _value_factors(layer: Any, path: str, heads: int, d_head: int) -> tuple[Tensor, Tensor]:
    """A factor for each head of v, and the same for each row of the layer that makes v.

    Heads that share one key and value (grouped queries) share a factor.
    """
    rows = getattr(layer, "out_features", heads * d_head)
    if path.rpartition(".")[2] in FUSED_PROJECTIONS:
        each, width = head_factors(heads), heads * d_head
        start = width if path.endswith("txt_kv_proj") else 2 * width
        before, after = torch.ones(start), torch.ones(rows - start - width)
        return each, torch.cat([before, each.repeat_interleave(d_head), after])
    groups = rows // d_head
    each = head_factors(groups)
    return each.repeat_interleave(heads // groups), each.repeat_interleave(d_head)


def _v_is_its_projection(
    subject: Subject,
    findings: Findings,
    block: BlockSite,
    attention: Attention,
    stream: str,
    reactions: dict[str, Reaction],
) -> None:
    point = f"{block.prefix}.{attention.name}.{stream}.hook_v"
    module = f"{block.inside(attention.module)}."
    if stream not in reactions:
        findings.skip(f"{point}: the call has no argument that {stream} comes from")
        return
    moved = {
        path: tokens
        for path, tokens in reactions[stream].projections.items()
        if path.startswith(module) and bool(tokens.any())
    }
    if len(moved) != 1:
        names = (*VALUE_PROJECTIONS, *FUSED_PROJECTIONS)
        layers = f"{len(moved)} layers of {names} in {module[:-1]}"
        findings.skip(f"{point}: {layers} react to it, so that none can be scaled in its place")
        return
    ((path, tokens),) = moved.items()
    heads, d_head = head_sizes(subject.denoiser, block, attention)
    layer: Any = subject.denoiser.get_submodule(path)
    each, factors = _value_factors(layer, path, heads, d_head)
    if bool(tokens.all()) and is_editable(layer):
        edit = scaled_rows(layer, factors)
    else:
        edit = scaled_tokens(layer, tokens, factors)
    with edit:
        otherwise = subject.run()
    by_hook = subject.run([(point, _Scale(each))])
    same_effect(
        subject,
        findings,
        7,
        point,
        by_hook=by_hook,
        otherwise=otherwise,
        expected=f"scaling its heads to equal scaling the rows of {path}",
    )
