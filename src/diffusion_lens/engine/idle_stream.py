"""What serves the image alone in a block, left out where the block runs for concept tokens only.

The image token of that run is thrown away, and the concepts meet the image's keys of the main pass,
so that nothing of the image's own projections, modulation and MLP can reach a concept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from diffusion_lens.architectures.spec import BlockSite, BlockSpec
from diffusion_lens.engine.handles import forward_is


def idle_layers(denoiser: nn.Module, block: BlockSite) -> tuple[nn.Linear, ...]:
    """The linear layers of a block through which only image tokens go.

    Args:
        denoiser: The denoiser.
        block: The block as it is; its description says which stream a module serves.

    Returns:
        None of them where text and image share all weights.
    """
    paths = _modules_of(block.spec, "img") - _modules_of(block.spec, "txt")
    parts = [denoiser.get_submodule(block.inside(path)) for path in sorted(paths)]
    layers = (layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear))
    return tuple(dict.fromkeys(layers))


@contextlib.contextmanager
def idle(layers: Sequence[nn.Linear]) -> Iterator[None]:
    """Let layers give zeros, without reading their weights, while the context is open."""
    with contextlib.ExitStack() as undo:
        for layer in layers:
            undo.enter_context(forward_is(layer, _zeros(layer.out_features)))
        yield


def _zeros(width: int) -> Callable[..., Tensor]:
    return lambda given, *_args, **_kwargs: given.new_zeros(*given.shape[:-1], width)


def _modules_of(spec: BlockSpec, stream: str) -> set[str]:
    """Paths of the modules that a block's description names for a stream."""
    mlps = [mlp for name, mlp in spec.mlps.items() if name == stream]
    found = {mlp.module for mlp in mlps if mlp.module is not None}
    found |= {mlp.gate.module for mlp in mlps if mlp.gate is not None}
    for attention in spec.attentions:
        if stream in attention.projections:
            found.add(attention.projections[stream].module)
        if stream in attention.gates:
            found.add(attention.gates[stream].module)
        if set(attention.queries + attention.keys) == {stream}:
            found.add(attention.module)
    return found
