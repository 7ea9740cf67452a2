"""The factor of a gate, from what a module of the block gives or an argument of it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.spec import Gate
from diffusion_lens.errors import EngineError

AS_OUTPUTS = "Hook the outputs (hook_attn_out, hook_mlp_out) in place of the updates."


def factor_of(gate: Gate, block: nn.Module, given: Any) -> Tensor:
    """The factor, as the block's own forward forms it.

    Args:
        gate: Its description.
        block: The block, for a table of its own.
        given: What the module returned, or the argument.
    """
    factor = given if gate.index is None else _piece(gate, block, given)
    if gate.table is not None and gate.row is not None:
        factor = block.get_parameter(gate.table)[gate.row] + factor
    if gate.limit is not None:
        factor = factor.clamp(-gate.limit, gate.limit)
    return factor if gate.activation is None else getattr(torch, gate.activation)(factor)


def _piece(gate: Gate, block: nn.Module, given: Any) -> Tensor:
    if gate.pieces == 1:
        return given[gate.index]
    if gate.table is None and not gate.stacked:
        return given.chunk(gate.pieces, -1)[gate.index or 0]
    given = given.float() if gate.upcast else given
    each = given if gate.stacked else given.unflatten(-1, (gate.pieces, -1))
    if each.shape[-2] != gate.pieces:
        raise EngineError(
            f"{type(block).__name__} was given a modulation of shape {tuple(given.shape)}, where "
            f"its description counts {gate.pieces} pieces before the last axis: this way of "
            f"calling it is not described. {AS_OUTPUTS}"
        )
    factor = each.select(-2, gate.index or 0)
    if gate.table is None:
        return factor
    table = block.get_parameter(gate.table)
    return table.reshape(gate.pieces, -1)[gate.index or 0] + factor
