"""Keeping a cache on disk: every tensor is written as it comes and mapped back into memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion_lens.activation_cache import storage
from diffusion_lens.errors import CacheFileError

if TYPE_CHECKING:
    from diffusion_lens.activation_cache.cache import ActivationCache


class Spool:
    """A folder of single tensors, which `ActivationCache.load` opens again.

    Tensors come back as maps of their files: the operating system reads what is looked at. The
    folder must stay in place as long as the cache is used.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder of its own.

        Raises:
            CacheFileError: If it is a file, or holds something.
        """
        storage.make(folder)
        if any(folder.iterdir()):
            there = (folder / storage.INDEX).exists()
            what = "holds a cache already, which cannot be added to" if there else "is not empty"
            how = "; read that one with `ActivationCache.load(folder)`" if there else ""
            raise CacheFileError(f"{folder} {what}: spool into a new folder{how}")
        self.folder = folder
        self.files: dict[tuple[str, str, int], str] = {}
        self.count = 0

    def add(self, name: str, branch: str, step: int, value: Tensor) -> Tensor:
        """Write a tensor and give it back as a map of its file."""
        if not self.count:
            storage.write_index(self.folder, {"spooled": False})
        path = self.folder / f"{self.count:06d}.safetensors"
        self.count += 1
        save_file({"value": value.detach().cpu().contiguous()}, path)
        self.files[name, branch, step] = path.name
        return read(path)

    def finish(self, cache: ActivationCache) -> None:
        """Write what the files hold, so that the folder can be opened again."""
        if self.count:
            places = [(*place, file) for place, file in self.files.items()]
            storage.write_index(self.folder, {**storage.index_of(cache, places), "spooled": True})


def read(path: Path, *, device: str = "cpu") -> Tensor:
    """One spooled tensor, mapped."""
    with safe_open(path, "pt", device=device) as file:
        return file.get_tensor("value")
