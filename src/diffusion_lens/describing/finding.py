"""Which modules of a denoiser are transformer blocks."""

from __future__ import annotations

from torch import nn

from diffusion_lens.describing.attentions import multiplies_streams
from diffusion_lens.describing.origins import PRODUCT
from diffusion_lens.describing.tracing import Call, Trace

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def find_block_paths(found: Trace) -> list[str]:
    """Paths of the modules that hold attention and stand in a list, in the order of their calls.

    Args:
        found: An evaluation.
    """
    lists = {path for path, one in found.denoiser.named_modules() if isinstance(one, LISTS)}
    scopes = [
        op.scope
        for op in found.ops
        if op.scope is not None and (op.name == PRODUCT or multiplies_streams(op))
    ]
    calls = {id(call): call for scope in scopes for call in [_block_of(scope, lists)] if call}
    ordered = sorted(calls.values(), key=lambda call: call.first)
    return list(dict.fromkeys(_innermost(found, call).path for call in ordered))


def _block_of(scope: Call, lists: set[str]) -> Call | None:
    """The closest module call around an attention that stands in a list."""
    call = scope.inside
    while call is not None and call.path.rpartition(".")[0] not in lists:
        call = call.inside
    return call


def _innermost(found: Trace, call: Call) -> Call:
    """The module that does what a wrapper around it returns."""
    own = [one for one in found.calls if one.inside is call]
    same = len(own) == 1 and [*own[0].gives.values()] == [*call.gives.values()]
    return _innermost(found, own[0]) if same else call
