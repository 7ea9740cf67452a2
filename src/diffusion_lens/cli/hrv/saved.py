"""Head relevance vectors that `hrv build` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.cli.folders import RESULT

Relevance = Annotated[
    Path, typer.Argument(help="What `hrv build` wrote (--out), or a saved HeadRelevance.")
]


def loaded(folder: Path) -> Any:
    """Read them from a folder."""
    from diffusion_lens.analyses import HeadRelevance

    inside = folder / RESULT
    return HeadRelevance.load(inside if inside.is_dir() else folder)
