"""What the arguments of a denoiser's call are, by their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusion_lens.describing.tracing import tensors
from diffusion_lens.errors import UnsupportedModelError, listing

LATENTS = ("hidden_states", "sample", "x", "latents")
TEXT = ("encoder_hidden_states", "cap_feats", "prompt_embeds", "context", "input_ids")
LIKE_TEXT = ("encoder_hidden_states", "text", "prompt", "llm", "caption")
NOT_TEXT = ("image", "mask", "ids", "len", "pool", "num", "size", "guidance")
TIMESTEP = ("timestep", "timesteps", "t")
IMAGE_PROMPTS = ("encoder_hidden_states_image",)
POOLED = ("pooled_projections", "pooled_projection", "y")
"""Names that diffusers gives each kind, the usual first."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call.

    Attributes:
        given: All of them.
        latents: The one with the latents.
        text: The one with the text.
        text_beside: Further ones with text.
        timestep: The one with the timestep.
        pooled: The one with pooled text; None where there is none.
    """

    given: Mapping[str, Any]
    latents: str
    text: str
    text_beside: tuple[str, ...]
    timestep: str
    pooled: str | None

    @property
    def streams(self) -> dict[str, tuple[str, ...]]:
        """For each stream the arguments that it is made from."""
        found = {"img": (self.latents,), "txt": (self.text, *self.text_beside)}
        images = tuple(name for name in IMAGE_PROMPTS if name in self.given)
        return found | ({"ip": images} if images else {})

    @property
    def text_tokens(self) -> int:
        """How many tokens the text has; of one tensor for each sample the longest counts."""
        text = self.given[self.text]
        return text.shape[1] if isinstance(text, Tensor) else max(len(one) for one in text)


def read_inputs(kind: str, given: Mapping[str, Any]) -> Inputs:
    """Tell the arguments of a denoiser's call apart.

    Args:
        kind: The denoiser's class name.
        given: The keyword arguments.

    Raises:
        UnsupportedModelError: If one that must be there is not.
    """
    held = {name: value for name, value in given.items() if any(tensors(value))}
    text = [name for name in TEXT if name in held][:1]
    text += [name for name in held if name not in text and _is_like_text(name)]
    chosen = {
        "the latents": _first(LATENTS, held),
        "the text": text[0] if text else None,
        "the timestep": _first(TIMESTEP, held),
    }
    missing = [what for what, name in chosen.items() if name is None]
    if missing:
        raise UnsupportedModelError(
            f"which argument of {kind} is {' and '.join(missing)} cannot be told: it was called "
            f"with {listing(sorted(given))}, and none has a name that diffusers gives them; "
            "describe the class by hand (docs/architecture.md)"
        )
    latents, words, timestep = (str(name) for name in chosen.values())
    return Inputs(given, latents, words, tuple(text[1:]), timestep, _first(POOLED, held))


def _first(names: tuple[str, ...], held: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in held), None)


def _is_like_text(name: str) -> bool:
    return any(one in name for one in LIKE_TEXT) and not any(one in name for one in NOT_TEXT)
