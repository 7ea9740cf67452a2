"""Adding a direction to an activation (steering)."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from diffusion_lens.border import Number, public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import HookContext


@dataclass(frozen=True)
class AddVector:
    """A hook that adds a vector along the last axis."""

    vector: Float[Tensor, " width"] = field(repr=False)
    scale: float = 1.0

    def __call__(
        self, activation: Float[Tensor, "... width"], hook: HookContext
    ) -> Float[Tensor, "... width"]:
        """The activation plus `scale * vector`."""
        if self.vector.shape[-1] != activation.shape[-1]:
            raise RunError(
                f"add_vector at {hook.name}: a vector of {self.vector.shape[-1]} numbers where the "
                f"last axis, {hook.axes[-1]}, has {activation.shape[-1]}"
            )
        return activation + self.scale * self.vector.to(activation)


@public
def add_vector(vector: Tensor, *, scale: Number = 1.0) -> AddVector:
    """Make a hook that adds a vector to every token that its Site selects.

    A vector found as a difference of means points along whatever differed between the two sets,
    wanted or not; compare with a random vector of the same norm.

    Args:
        vector: One axis: the last one of the hook point, such as d_model.
        scale: Factor on it.

    Raises:
        RunError: When it runs, if the widths differ.
    """
    if vector.ndim != 1:
        raise RunError(f"add_vector takes one vector, got shape {tuple(vector.shape)}")
    return AddVector(vector, scale)
