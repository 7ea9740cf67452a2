"""The raw text-to-image attention pattern as a saliency method, by diffusers and torch alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from diffusion_lens.toys.benchmark.segmentation import SaliencyMethod, Task
from diffusion_lens.toys.noising import predict_noised
from diffusion_lens.toys.tokenizers import MAX_LENGTH

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CELLS = 16


class TextPatterns(TorchFunctionMode):
    """While entered, keeps how much each image token attends to each text token.

    Which attention reads the text is told by the module: at some resolution there are as many image
    tokens as text tokens.

    Args:
        denoiser: A UNet, or an MM-DiT, whose text and image share one sequence, text first.
    """

    def __init__(self, denoiser: torch.nn.Module) -> None:
        """Start with nothing kept."""
        super().__init__()
        self.joint = not any(path.endswith(".attn2") for path, _ in denoiser.named_modules())
        self.denoiser = denoiser
        self.reading = False
        self.kept: list[Float[Tensor, "head row column word"]] = []
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> TextPatterns:
        """Watch the modules that read the text."""
        for path, module in self.denoiser.named_modules():
            if path.endswith(".attn" if self.joint else ".attn2"):
                self.handles += [
                    module.register_forward_pre_hook(lambda *_: self._read(True)),
                    module.register_forward_hook(lambda *_: self._read(False)),
                ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the modules as they were."""
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _read(self, reading: bool) -> None:
        self.reading = reading

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute one torch function; called by torch."""
        if self.reading and func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key"), args, strict=False)) | dict(kwargs or {})
            self._keep(given["query"], given["key"])
        return func(*args, **(kwargs or {}))

    def _keep(self, query: Tensor, key: Tensor) -> None:
        pattern = (query[0] @ key[0].mT * query.shape[-1] ** -0.5).softmax(-1)
        pattern = pattern[:, MAX_LENGTH:, :MAX_LENGTH] if self.joint else pattern
        side = math.isqrt(pattern.shape[1])
        self.kept.append(rearrange(pattern, "h (r c) w -> h r c w", r=side))

    def mean(self) -> Float[Tensor, "row column word"]:
        """Mean over heads and layers, coarse layers enlarged to 16 x 16 cells."""
        maps = [reduce(kept, "h r c w -> r c w", "mean") for kept in self.kept]
        return torch.stack(
            [
                m.repeat_interleave(CELLS // len(m), 0).repeat_interleave(CELLS // len(m), 1)
                for m in maps
            ]
        ).mean(0)


def raw_pattern(pipe: DiffusionPipeline) -> SaliencyMethod:
    """The attention pattern, averaged over every layer and head, one denoiser evaluation.

    The weakest map that still looks at the model. No layer or head is chosen and nothing is
    normalised over words.

    Args:
        pipe: A toy pipeline.

    Returns:
        A method; a query of several words gets the mean of their maps.
    """
    joint = "transformer" in pipe.components
    denoiser = pipe.components["transformer" if joint else "unet"]
    start = 0 if joint else 1

    def method(task: Task) -> Float[np.ndarray, "query rows columns"]:
        with TextPatterns(denoiser) as patterns, torch.no_grad():
            predict_noised(
                pipe,
                task.image,
                caption=task.caption,
                noise_level=task.noise_level,
                seed=task.seed,
            )
        mean = patterns.mean()
        words = [[start + word for word in query.words] for query in task.queries]
        return torch.stack([mean[..., each].mean(-1) for each in words]).double().numpy()

    return method
