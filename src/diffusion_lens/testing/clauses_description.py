"""Clause 8: nothing that runs is left out, and modules are what the description calls them.

These are the fields that no edit tells apart: a hook at a wrong module that is read and edited
there, consistently, would pass the other clauses.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion_lens.hook_points import HookContext
from diffusion_lens.testing.clauses_products import head_factors
from diffusion_lens.testing.comparing import close
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Subject, disturbed


def products_are_described(subject: Subject, findings: Findings) -> None:
    """Every attention product of a plain evaluation belongs to a module that is described.

    As many are made as are named, and those left out lie where the description says so.
    """
    made = _products_by_module(subject)
    batch = len(subject.inputs[subject.model.spec.latents])
    described = {
        block.inside(attention.module): len(attention.products)
        * (1 if attention.kept is None else batch)
        for block in subject.blocks
        for attention in block.spec.attentions
    }
    apart = tuple(subject.model.spec.apart)
    for path, count in made.items():
        owner = next((one for one in described if _lies_in(path, one)), None)
        if owner is None:
            findings.check(
                any(_lies_in(path, one) for one in apart),
                8,
                path or "(denoiser)",
                expected="every attention product in an attention module that is described, or in "
                "a part that `apart` names",
                found=f"{count} that no description names",
            )
    for path, expected in described.items():
        found = sum(count for one, count in made.items() if _lies_in(one, path))
        findings.check(
            found in (0, expected),  # none: worked out in steps, which other clauses see
            8,
            path,
            expected=f"{expected} attention products",
            found=str(found),
        )


def turns_are_turns(subject: Subject, findings: Findings) -> None:
    """A query or key before its rotary embedding turns into that behind it, and into no other.

    Rotary embeddings are linear: scaling each head before one must scale that head behind it.
    """
    for block in subject.blocks:
        for attention in block.spec.attentions:
            base = f"{block.prefix}.{attention.name}"
            names = {f"{base}.{stream}.hook_{w}" for stream in attention.before_rope for w in "qk"}
            behind = sorted(name for name in names if name in subject.points)
            tried = [name for name in behind if _is_tried(subject, f"{name}_pre_rope")]
            before = subject.record(behind).values() if tried else {}
            for name in tried:
                _turns_into(subject, findings, name, before)


def neurons_enter_the_last_layer(subject: Subject, findings: Findings) -> None:
    """What takes an MLP's neurons returns the MLP's output."""
    mlps = [
        (block, stream, mlp)
        for block in subject.blocks
        for stream, mlp in block.spec.mlps.items()
        if mlp.down is not None  # else there are no neurons to read
    ]
    paths = {
        block.inside(path) for block, _, mlp in mlps for path in (mlp.down, mlp.module) if path
    }
    returned = _returned(subject, paths)
    for block, stream, mlp in mlps:
        down = block.inside(mlp.down or "")
        if mlp.module is None:
            fused = {one.module for one in block.spec.attentions[0].projections.values()}
            at, ends = down, mlp.down in fused
        else:
            at = block.inside(mlp.module)
            ones, others = returned[down], returned[at]
            ends = len(ones) == len(others) and all(map(torch.equal, ones, others))
        findings.check(
            ends,
            8,
            f"{block.prefix}.{stream}.mlp.hook_post",
            expected=f"{down} to return what {at} does",
            found="something else",
        )


def middles_are_named(subject: Subject, findings: Findings) -> None:
    """Between two sublayers that follow each other lies a point, or a reason why none does."""
    for block in subject.blocks:
        for name, stream in block.spec.streams.items():
            stretches = [*(mid.updates for mid in stream.mids), stream.updates]
            both = any("mlp" in one and len(one) > 1 for one in stretches)
            reason = block.spec.absent.get(f"{name}.hook_resid_mid")
            findings.check(
                not both or reason is not None,
                8,
                f"{block.prefix}.{name}.hook_resid_mid",
                expected="a place between attention and MLP (`mids`), or a reason in `absent`",
                found="neither",
            )


def time_is_time(subject: Subject, findings: Findings) -> None:
    """The timestep's embedding moves with the timestep, and not with the latents."""
    point, spec = "hook_timestep_emb", subject.model.spec
    given = subject.inputs.get(spec.timestep)
    if point not in subject.points or not isinstance(given, Tensor):
        findings.skip(f"{point}: the call has no argument {spec.timestep!r}")
        return
    before = subject.record([point]).values()[point]
    later = {spec.timestep: given * 0.5 if given.is_floating_point() else given // 2}
    other = {spec.latents: disturbed(subject.inputs[spec.latents], spec.latents)}
    for changes, moves, what in ((later, True, "the timestep"), (other, False, "the latents")):
        after = subject.record([point], changes=changes).values()[point]
        findings.check(
            torch.equal(before, after) != moves,
            8,
            point,
            expected=f"{'a change' if moves else 'no change'} with {what}",
            found="none" if moves else "one",
        )


def _is_tried(subject: Subject, point: str) -> bool:
    return point in subject.sample and not subject.points[point].dead


def _turns_into(subject: Subject, findings: Findings, name: str, before: dict[str, Tensor]) -> None:
    """Scale each head before rotary embedding, and look at all queries and keys behind it."""
    point = f"{name}_pre_rope"
    heads: list[int] = []

    def scale(activation: Tensor, _hook: HookContext) -> Tensor:
        heads.append(activation.shape[2])
        return activation * head_factors(heads[0]).to(activation)[:, None]

    after = subject.record(before, [(point, scale)]).values()
    for other, value in before.items():
        expected = value
        if other == name:
            factors = head_factors(heads[0]).repeat_interleave(value.shape[2] // heads[0])
            expected = value * factors.to(value)[:, None]
        compared = close(after[other], expected, subject.tolerance.sum)
        what = "each head as it is scaled there" if other == name else "no change"
        said = f"{what} at {other}"
        findings.check(**vars(compared), clause=8, where=point, expected=said)


def _returned(subject: Subject, paths: set[str]) -> dict[str, list[Tensor]]:
    """What modules return in each of their calls of one evaluation."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    with contextlib.ExitStack() as stack:
        for path, outputs in seen.items():
            module = subject.denoiser.get_submodule(path)
            handle = module.register_forward_hook(lambda _m, _a, out, to=outputs: to.append(out))
            stack.callback(handle.remove)
        subject.run()
    return seen


class _Counting(TorchFunctionMode):
    """Counts attention products by the module that makes them."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.running = running
        self.made: Counter[str] = Counter()

    def __torch_function__(
        self, function: Callable, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.made[self.running[-1] if self.running else ""] += 1
        return function(*args, **(kwargs or {}))


def _products_by_module(subject: Subject) -> Counter[str]:
    """How many attention products each module makes in a plain evaluation, itself."""
    running: list[str] = []
    counting = _Counting(running)
    with _noting(subject.denoiser, running), counting:
        subject.run()
    return counting.made


@contextlib.contextmanager
def _noting(denoiser: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the paths of the modules that run, the innermost last."""

    def leave_it(*_given: Any) -> None:
        running.pop()

    with contextlib.ExitStack() as stack:
        for path, module in denoiser.named_modules():
            enter = module.register_forward_pre_hook(lambda _m, _a, at=path: running.append(at))
            leave = module.register_forward_hook(leave_it)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        yield


def _lies_in(path: str, owner: str) -> bool:
    return path == owner or path.startswith(f"{owner}.")
