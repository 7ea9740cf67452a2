"""Keeping a cache on disk: every tensor is written as it comes and mapped back into memory."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion_lens.errors import CacheFileError


class Spool:
    """A folder of single tensors.

    Tensors come back as maps of their files: the operating system reads what is looked at. The
    folder must stay in place as long as the cache is used.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder of its own.

        Raises:
            CacheFileError: If it exists and is not empty.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CacheFileError(f"{folder} is not empty; spool into a new folder")
        self.folder = folder
        self.count = 0

    def add(self, value: Tensor) -> Tensor:
        """Write a tensor and give it back as a map of its file."""
        path = self.folder / f"{self.count:06d}.safetensors"
        self.count += 1
        save_file({"value": value.detach().cpu().contiguous()}, path)
        with safe_open(path, "pt") as file:
            return file.get_tensor("value")
