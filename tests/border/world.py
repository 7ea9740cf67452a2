"""Models and results that calls of public functions need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, analyses, toys
from diffusion_lens.analyses import patching

PROMPT = "a red circle"
CONCEPTS = {"Colour": ["red", "blue"], "Shape": ["circle", "square"]}
Z = "blocks.4.cross_attn.img.hook_z"
PATTERN = "blocks.4.cross_attn.hook_pattern"


@dataclass(frozen=True)
class Case:
    """A call, and the arguments that are exchanged one at a time."""

    name: str
    call: Callable[..., Any]
    arguments: dict[str, Any]


Add = Callable[..., None]
"""How a case is added: its name, what is called, and its arguments by name."""


class World:
    """Models and results that the calls need, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unet = HookedDiffusion.toy("shapes-unet")
        self.mmdit = HookedDiffusion.toy("shapes-mmdit")
        self.one = toys.call_defaults(self.unet, steps=1)
        self.one_mm = toys.call_defaults(self.mmdit, steps=1)
        self.quick = {"show_progress": False, **self.one}
        out, self.cache = self.unet.run_with_cache(
            PROMPT, names_filter=["hook_sample", Z, PATTERN], branch="all", **self.quick
        )
        self.image = out.image
        self.relevance = analyses.head_relevance(
            self.unet, [PROMPT], concepts=CONCEPTS, **self.quick
        )
        self.maps = analyses.attention_maps(self.unet, PROMPT, **self.one)
        self.concept_maps = analyses.concept_attention(
            self.mmdit, PROMPT, concepts=["red", "circle"], **self.one_mm
        )
        self.patterns = analyses.head_patterns(self.mmdit, PROMPT, **self.one_mm)
        self.patched = self.patch(axes=("block", "head"), seeds=[0, 1])
        self.diagnosis = analyses.diagnose_word(
            self.unet, PROMPT, "circle", list(CONCEPTS), relevance=self.relevance, **self.one
        )
        self.cache.save(folder / "cache")
        self.maps.save(folder / "maps")

    def patch(self, corrupted: Any = "a blue circle", **more: Any) -> Any:
        """A small sweep."""
        given = {"sites": Z, "axes": ("block",), "seeds": [0, 1], **self.quick, **more}
        return patching.activation_patching(self.unet, PROMPT, corrupted, **given)

    def hooked(self, hook: Any, site: Any = Z) -> Any:
        """A run with one hook."""
        return self.unet.run_with_hooks(PROMPT, fwd_hooks=[(site, hook)], **self.one)


def nothing(_activation: Tensor, _hook: Any) -> None:
    """A hook that leaves everything as it is."""


def zeros(images: list[Any], _texts: list[str]) -> Tensor:
    """A score."""
    return torch.zeros(len(images))


def inside(context: Callable[..., Any], then: Callable[[], Any]) -> Callable[..., Any]:
    """A call that opens a context and does something in it."""

    def call(**arguments: Any) -> None:
        with context(**arguments):
            then()

    return call
