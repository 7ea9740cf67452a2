"""What serves the image alone in a block, left out where the block runs for concept tokens only.

The image token of that run is thrown away, and the concepts meet the image's keys of the main pass,
so that nothing of the image's own modulation, output projection and MLP can reach a concept. Its
q, k and v projections run on that one token: descriptions of blocks do not name them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from diffusion_lens.architectures.spec import BlockSite, BlockSpec
from diffusion_lens.engine.handles import forward_is


def image_layers(denoiser: nn.Module, block: BlockSite) -> tuple[nn.Linear, ...]:
    """The linear layers of a block through which only image tokens go.

    Args:
        denoiser: The denoiser.
        block: The block as it is; its description says which stream a module serves.

    Returns:
        None of them where text and image share all weights. Layers that diffusers moves to and from
        the device (group offloading) are not among them: what follows their forward must happen.
    """
    paths = _modules_of(block.spec, "img") - _modules_of(block.spec, "txt")
    parts = [denoiser.get_submodule(block.inside(path)) for path in sorted(paths)]
    layers = (layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear))
    return tuple(layer for layer in dict.fromkeys(layers) if not hasattr(layer, "_diffusers_hook"))


@contextlib.contextmanager
def left_out(layers: Sequence[nn.Linear], asked: Callable[[], int]) -> Iterator[None]:
    """Let layers give zeros, without reading their weights, while the context is open.

    Args:
        layers: The layers.
        asked: Whether a hook is being called: one that calls a layer gets what the layer gives.
    """
    with contextlib.ExitStack() as undo:
        for layer in layers:
            undo.enter_context(forward_is(layer, _zeros(layer.forward, layer.out_features, asked)))
        yield


def _zeros(
    forward: Callable[..., Tensor], width: int, asked: Callable[[], int]
) -> Callable[..., Tensor]:
    def stand_in(given: Tensor, *args: object, **kwargs: object) -> Tensor:
        if asked():
            return forward(given, *args, **kwargs)
        return given.new_zeros(*given.shape[:-1], width)

    return stand_in


def _modules_of(spec: BlockSpec, stream: str) -> set[str]:
    """Paths of the modules that a block's description names for a stream."""
    found = set()
    mlp = spec.mlps.get(stream)
    if mlp is not None and mlp.module is not None:
        found.add(mlp.module)
    if mlp is not None and mlp.gate is not None:
        found.add(mlp.gate.module)
    for attention in spec.attentions:
        if stream in attention.projections:
            found.add(attention.projections[stream].module)
        if stream in attention.gates:
            found.add(attention.gates[stream].module)
        if set(attention.queries + attention.keys) == {stream}:
            found.add(attention.module)
    return found - {""}  # gates that an argument brings in
