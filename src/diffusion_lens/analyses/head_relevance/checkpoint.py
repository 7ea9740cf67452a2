"""What head relevance has counted so far, in a folder, so that a run that was ended goes on."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from diffusion_lens.analyses.head_relevance.result import HeadRelevance
from diffusion_lens.analyses.head_relevance.votes import HeadRelevanceVotes
from diffusion_lens.analyses.saving import RESULT, TENSORS, read_made_by
from diffusion_lens.errors import ResultError
from diffusion_lens.long_runs.fingerprint import refuse_other
from diffusion_lens.long_runs.locking import only_process

NAME = re.compile(r"prompts-\d{8}")
PARTIAL = "prompts.partial"
LOCK = ".head_relevance.lock"
MARK = "fingerprint"
WRITTEN = re.compile(rf"{TENSORS}|{RESULT}|\.(tensors|result)\.\d+\.partial\.\w+")
"""Files of a result, and what a process that was killed while it wrote them leaves."""


class Checkpoint:
    """A folder with one saved result, whose name says for how many prompts it stands.

    Nothing is ever removed but what such a run wrote: its own files, by name, and then the folders
    that are empty without them.

    Args:
        folder: Where; None keeps nothing.
        every: After how many prompts to write.
        fingerprint: Of the run.
    """

    def __init__(
        self, folder: str | Path | None, every: int, fingerprint: Mapping[str, str]
    ) -> None:
        """Nothing is read yet."""
        self.folder = None if folder is None else Path(folder)
        self.every = every
        self.fingerprint = dict(fingerprint)
        self.kept = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder for this process while the context is open.

        Raises:
            ResultError: If it cannot be made or written to, or another process has it.
        """
        if self.folder is None:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(
                f"checkpoint={str(self.folder)!r} cannot be made ({error}); give a folder"
            ) from error
        with only_process(self.folder / LOCK, argument="checkpoint"):
            yield

    def resume(self, votes: HeadRelevanceVotes) -> int:
        """Put back what was counted; the number of prompts it stands for.

        Raises:
            ResultError: If the checkpoint is of another run or damaged, or if something else has a
                name that this run writes to.
        """
        if self.folder is None:
            return 0
        found = self._found()
        if not found:
            return 0
        last = found.pop()
        kept = self._read(last)
        for old in found:
            # An earlier one is there if a run was killed after it had written the last.
            if self._is_mine(old):
                _remove(old)
        assert kept.votes is not None
        assert kept.parts is not None
        votes.totals = dict(zip(kept.steps, kept.votes.mT.double(), strict=True))
        votes.parts = kept.parts.mT.double().contiguous()
        votes.prompts_in_parts = list(kept.prompts_in_parts)
        self.kept = kept.prompts
        return kept.prompts

    def due(self, done: int) -> bool:
        """Whether it is time to write."""
        return self.folder is not None and done - self.kept >= self.every

    def write(self, result: HeadRelevance) -> None:
        """Write what was counted, and remove what was written before.

        Raises:
            ResultError: If it cannot be written.
        """
        assert self.folder is not None
        final, partial = self.folder / _name(result.prompts), self.folder / PARTIAL
        made_by = {**result.made_by, MARK: self.fingerprint}
        try:
            replace(result, made_by=made_by).save(partial)
            partial.rename(final)
        except OSError as error:
            raise ResultError(
                f"the checkpoint {final} cannot be written ({error}); what was counted of the "
                f"first {self.kept} prompts is kept"
            ) from error
        if self.kept:
            _remove(self.folder / _name(self.kept))
        self.kept = result.prompts

    def _found(self) -> list[Path]:
        """The checkpoints in the folder, the last one last."""
        assert self.folder is not None
        partial = self.folder / PARTIAL
        if self._is_mine(partial):
            _remove(partial)
        named = sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))
        occupied = [path for path in named if not _is_folder(path)]
        if os.path.lexists(partial):
            occupied.append(partial)
        if occupied:
            raise ResultError(
                f"{occupied[0]} is no checkpoint of this run, but has the name of one; move it, or "
                "give another checkpoint= folder"
            )
        return named

    def _read(self, path: Path) -> HeadRelevance:
        with _or_anew(path):
            found = read_made_by(path).get(MARK)
        refuse_other(found, self.fingerprint, folder=path, error=ResultError)
        with _or_anew(path):
            kept = HeadRelevance.load(path)
            counted = sum(kept.prompts_in_parts)
            if path.name != _name(kept.prompts) or kept.prompts != counted:
                raise ResultError(f"{path} holds counts of {counted} prompts, not what it says")
        return kept

    def _is_mine(self, path: Path) -> bool:
        """Whether this run wrote a folder, or began to."""
        if not _is_folder(path) or not all(WRITTEN.fullmatch(one.name) for one in path.iterdir()):
            return False
        if not (path / RESULT).exists():
            return True
        with contextlib.suppress(ResultError):
            return read_made_by(path).get(MARK) == self.fingerprint
        return False


@contextlib.contextmanager
def _or_anew(path: Path) -> Iterator[None]:
    try:
        yield
    except ResultError as error:
        raise ResultError(
            f"{error}. To begin anew, remove {path}, or give another checkpoint= folder"
        ) from error


def _name(prompts: int) -> str:
    return f"prompts-{prompts:08d}"


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Remove a saved result, and its folder if that is empty then.

    The page that says whose it is goes last, so that a removal that is cut short can go on.
    """
    written = [file for file in path.iterdir() if WRITTEN.fullmatch(file.name)]
    for file in sorted(written, key=lambda one: one.name == RESULT):
        file.unlink()
    with contextlib.suppress(OSError):
        path.rmdir()
