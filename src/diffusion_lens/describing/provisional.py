"""A description for the engine, straight from what was read; nobody reviewed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.spec import BlockSpec, DenoiserSpec, TextPart
from diffusion_lens.describing.description import Description
from diffusion_lens.errors import UnsupportedModelError, listing

UNTOLD = "the description of this class is provisional"


def provisional(found: Description, answers: Mapping[str, Any]) -> DenoiserSpec:
    """The description of one denoiser, for itself alone.

    Args:
        found: What was read of it. Blocks that left anything open are not offered.
        answers: What a run of its pipeline said, field by field.

    Raises:
        UnsupportedModelError: If no block is without doubt, or the token grid is not known.
    """
    kind = type(found.denoiser).__name__
    certain = {id(one.call.module): one.spec for one in found.blocks if not one.doubts}
    if not certain:
        raise UnsupportedModelError(
            f"no block of {kind} could be read without doubt: {listing(found.doubts)}; describe "
            f"the class by hand, beginning with `diffusion-lens describe`"
        )
    if found.grid is None or found.axes is None:
        raise UnsupportedModelError(
            f"where the image tokens of {kind} lie cannot be told from its call: no form of grid "
            "gives as many as its blocks have, row by row; describe the class by hand, beginning "
            "with `diffusion-lens describe`"
        )

    def of(block: nn.Module) -> BlockSpec:
        return certain[id(block)]

    doubted = {
        one.call.path: f"not read without doubt: {'; '.join(one.doubts)}"
        for one in found.blocks
        if one.doubts
    }
    order = [one.call.path for one in found.blocks]
    return DenoiserSpec(
        denoiser=kind,
        family=f"{kind} (provisional)",
        blocks=dict.fromkeys((type(one.call.module).__name__ for one in found.blocks), of),
        outside=forms.points(found.axes, **found.outside),
        latents=found.inputs.latents,
        text=found.inputs.text,
        text_beside=found.inputs.text_beside,
        timestep=found.inputs.timestep,
        grid=found.grid.of,
        grid_from=found.grid.argument,
        default_grid=_native(found),
        text_parts=(TextPart("tokenizer", untold=UNTOLD),),
        **{"text_tokens": found.inputs.text_tokens, **answers},
        order=lambda path: (order.index(path),) if path in order else (len(order),),
        text_ends_in_last_block=bool(found.reading.text_ends),
        apart={**found.apart, **doubted},
    )


def _native(found: Description) -> Any:
    """The grid of the call that was read."""
    assert found.grid is not None
    return forms.native(*found.grid.of(found.denoiser, found.inputs.given, 0))
