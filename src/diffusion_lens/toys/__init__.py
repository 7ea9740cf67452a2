"""Small trained diffusion models with exact ground truth, and the world that they draw."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lens.toys.generating import call_defaults as call_defaults
    from diffusion_lens.toys.generating import generate as generate
    from diffusion_lens.toys.loading import folder as folder
    from diffusion_lens.toys.loading import load as load
    from diffusion_lens.toys.loading import names as names
    from diffusion_lens.toys.shapes.evaluation import test_captions as test_captions
    from diffusion_lens.toys.shapes.grading import grade as grade_image

_HOMES = {
    "call_defaults": ("generating", "call_defaults"),
    "folder": ("loading", "folder"),
    "generate": ("generating", "generate"),
    "grade_image": ("shapes.grading", "grade"),
    "load": ("loading", "load"),
    "names": ("loading", "names"),
    "test_captions": ("shapes.evaluation", "test_captions"),
}
__all__ = [
    "call_defaults",
    "folder",
    "generate",
    "grade_image",
    "load",
    "names",
    "test_captions",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: diffusers alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffusion_lens.toys' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"diffusion_lens.toys.{module}"), attribute)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
