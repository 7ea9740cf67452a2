"""The scores of a sweep on disk: whose they are, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.patching.outcome import Metric
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.plan import Plan
from diffusion_lens.errors import PatchingError
from diffusion_lens.long_runs.fingerprint import fingerprint, refuse_other
from diffusion_lens.long_runs.telling import digest
from diffusion_lens.whole_files import whole_file, write_whole

SCORES, ABOUT = "scores.safetensors", "sweep.json"


@dataclass(frozen=True)
class Kept:
    """A folder with the scores of one sweep; other files in it are left alone.

    Attributes:
        folder: Where.
        sweep: The fingerprint of the sweep.
    """

    folder: Path
    sweep: Mapping[str, str]

    def claim(self) -> None:
        """Make the folder this sweep's, before anything is computed.

        Raises:
            PatchingError: If it is another's, or damaged, or no folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise PatchingError(
                f"resume={str(self.folder)!r} is a file; give the name of a folder"
            ) from error
        page = self.folder / ABOUT
        if page.exists():
            refuse_other(_fingerprint_in(page), self.sweep, folder=self.folder, error=PatchingError)
        self._metadata()
        if not page.exists():
            write_whole(page, json.dumps({"fingerprint": dict(self.sweep)}, indent=1))

    def read(self, *, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        """Scores, and which of them are known; None where there are none yet.

        Args:
            shape: Theirs.

        Raises:
            PatchingError: If they are another sweep's, or damaged.
        """
        said = self._metadata()
        if said is None:
            return None
        file = self.folder / SCORES
        try:
            with safe_open(file, framework="pt") as opened:
                scores, done = (opened.get_tensor(name) for name in ("scores", "done"))
            whole = digest(scores, done) == said.get("digest")
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
        kinds = (scores.dtype, done.dtype) == (torch.float64, torch.bool)
        if not whole or not kinds or tuple(scores.shape) != shape or done.shape != scores.shape:
            raise _damaged(file, "its tensors are not those that were written")
        return scores, done

    def write(self, scores: Tensor, done: Tensor) -> None:
        """Put scores in the place of those that lie there."""
        said = {"sweep": digest(self.sweep), "digest": digest(scores, done)}
        with whole_file(self.folder / SCORES) as beside:
            save_file({"scores": scores, "done": done}, beside, metadata=said)

    def _metadata(self) -> dict[str, str] | None:
        """What the file of scores says of itself; None where there is none."""
        file = self.folder / SCORES
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                said = opened.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
        if said.get("sweep") != digest(self.sweep):
            raise PatchingError(
                f"{file} holds the scores of another sweep, or was written by another version. "
                "Give another resume= folder, or remove the file to score everything anew"
            )
        return said


def kept_in(
    folder: str | Path | None,
    model: HookedDiffusion,
    pair: Pair,
    plan: Plan,
    *,
    metric: Metric,
    decide: Mapping[str, Any],
) -> Kept | None:
    """The folder of a sweep, made its own; None where none is given.

    Args:
        folder: The folder.
        model: The model.
        pair: Source and base.
        plan: The patches.
        metric: What they are scored by.
        decide: What decides on scores besides these.

    Raises:
        PatchingError: If it is another's, or damaged.
    """
    if folder is None:
        return None
    sweep = fingerprint(
        model,
        None,
        clean=pair.clean.run,
        corrupted=pair.corrupted.run,
        noise=pair.corrupted.noise,
        latents=pair.latents,
        patches=plan.cells,
        metric=metric,
        **decide,
    )
    kept = Kept(Path(folder), sweep)
    kept.claim()
    return kept


def _fingerprint_in(page: Path) -> Any:
    try:
        said = json.loads(page.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(page, error) from error
    # Another form was written by another version: it has none of the entries.
    return said.get("fingerprint") if isinstance(said, dict) else None


def _damaged(file: Path, error: object) -> PatchingError:
    again = "it is written anew" if file.name == ABOUT else "its scores are computed anew"
    return PatchingError(
        f"{file} cannot be read ({error}): it was cut short or changed, or is something else. "
        f"Remove it, then {again}; or give another resume= folder"
    )
