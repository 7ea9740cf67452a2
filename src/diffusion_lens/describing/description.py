"""The description of a whole denoiser, read off one call of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from diffusion_lens.describing.blocks import Reading
from diffusion_lens.describing.denoisers import DenoiserReading, read_denoiser
from diffusion_lens.describing.finding import find_block_paths
from diffusion_lens.describing.inputs import Inputs, read_inputs
from diffusion_lens.describing.placing import entering_first, in_order
from diffusion_lens.describing.surroundings import (
    Grid,
    axes_of,
    embedding_of_time,
    grid_of,
    in_one_row,
    tokens_of,
)
from diffusion_lens.errors import DiffusionLensError, UnsupportedModelError

NO_MEETING = "image and text do not meet here"


@dataclass
class Description:
    """What was read of a denoiser.

    Attributes:
        denoiser: The model.
        inputs: The arguments of the call.
        reading: Of its blocks; those of `apart` are not among them.
        apart: Paths of blocks that are left out, with the reason.
        axes: Of the latents, the batch apart; None where they are not the usual ones.
        embedding: Path of the module that embeds the timestep; None where none was found.
        grid: The token grid; None where no form of it fits.
    """

    denoiser: nn.Module
    inputs: Inputs
    reading: DenoiserReading
    apart: Mapping[str, str]
    axes: tuple[str, ...] | None
    embedding: str | None
    grid: Grid | None

    @property
    def blocks(self) -> list[Reading]:
        """The blocks in which image and text meet, in the order of their calls."""
        return self.reading.blocks

    @property
    def doubts(self) -> list[str]:
        """What could not be read of them."""
        return self.reading.doubts

    @property
    def outside(self) -> dict[str, Any]:
        """What `forms.points` is given beside the axes."""
        names = (self.inputs.latents, self.inputs.text)
        return {"embedding": self.embedding, "pooled": self.inputs.pooled, "names": names}


def describe(denoiser: nn.Module, given: Mapping[str, Any]) -> Description:
    """Read off one call what a denoiser consists of.

    Every intermediate tensor is held of the first and the last of blocks that consist of the same
    modules, so the call should be one for a small image. In float16 more is seen: casts, and values
    kept within bounds.

    Args:
        denoiser: The model, in evaluation mode.
        given: The keyword arguments of the call.

    Raises:
        UnsupportedModelError: If nothing in it attends to image and text.
    """
    try:
        return _described(denoiser, given)
    except DiffusionLensError:
        raise
    except Exception as error:  # a model may do what the reading of one has no idea of
        kind = type(denoiser).__name__
        raise UnsupportedModelError(
            f"what runs in {kind} could not be read ({type(error).__name__}: {error}); describe "
            "the class by hand (docs/architecture.md)"
        ) from error


def _described(denoiser: nn.Module, given: Mapping[str, Any]) -> Description:
    kind = type(denoiser).__name__
    inputs = read_inputs(kind, given)
    paths = find_block_paths(denoiser, given)
    few = {"all_of_them": False}
    reading = read_denoiser(denoiser, given, paths, inputs.streams, **few) if paths else None
    every = [] if reading is None else reading.blocks
    kept = [one.call.path for one in every if one.joins]
    if reading is None or not kept:
        raise UnsupportedModelError(
            f"no block of {kind} was found in which image queries meet text keys, among the "
            f"{len(paths)} modules in lists that hold attention; describe the class by hand "
            "(docs/architecture.md)"
        )
    left_out = [one.call.path for one in every if not one.joins]
    if left_out:  # which must not be held to what they gave
        reading = read_denoiser(denoiser, given, kept, inputs.streams, **few)
    latents = given[inputs.latents]
    axes = axes_of(latents, getattr(denoiser.config, "in_channels", None))
    tokens = tokens_of(reading.blocks, "img")
    grid = grid_of(denoiser, inputs, max(tokens)) if len(tokens) == 1 else None
    if grid is None and axes == ("pos", "channel") and tokens == {latents.shape[1]}:
        grid = in_one_row(inputs.latents)
    if grid is not None and axes is not None:
        sizes = grid.of(denoiser, given, 0)
        entering = partial(entering_first, denoiser, inputs, reading.blocks[0])
        image = reading.blocks[0].spec.streams.get("img")
        if image is not None and not in_order(latents, axes, sizes, entering):
            grid = None
    return Description(
        denoiser,
        inputs,
        reading,
        dict.fromkeys(_lists(left_out, kept), NO_MEETING),
        axes,
        embedding_of_time(denoiser, inputs, kept),
        grid,
    )


def _lists(left_out: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Paths of the lists that hold blocks that are left out; of the blocks where others stay."""
    found = []
    for path in left_out:
        around = path.rpartition(".")[0]
        mixed = any(one.startswith(f"{around}.") for one in kept)
        found.append(path if mixed else around)
    return list(dict.fromkeys(found))
