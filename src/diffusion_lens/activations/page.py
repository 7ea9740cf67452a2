"""The page of a store, which says what it is of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lens.errors import StoreError
from diffusion_lens.whole_files import write_whole

FORMAT, VERSION = "diffusion_lens.ActivationStore", 1
PAGE = "store.json"


@dataclass(frozen=True)
class Page:
    """What a store is of.

    Attributes:
        fingerprint: What its rows depend on.
        prompts: The prompts.
        samples: How many samples.
        sites: The width of each site's rows, as the first step had them.
        shards: How many shards it will have.
        batches_in_shard: How many batches lie in one.
        about: What made it, for people.
    """

    fingerprint: Mapping[str, str]
    prompts: tuple[str, ...]
    samples: int
    sites: Mapping[str, int]
    shards: int
    batches_in_shard: int
    about: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The fingerprint in a few letters."""
        told = json.dumps(dict(self.fingerprint), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        said = {"format": FORMAT, "version": VERSION, **vars(self)}
        write_whole(folder / PAGE, json.dumps(said, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Page:
        """Read it.

        Raises:
            StoreError: If it is missing, cut short, or something else.
        """
        path = folder / PAGE
        if not path.is_file():
            raise StoreError(f"{folder} holds no store: there is no {PAGE}; `collect` writes one")
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); it was cut short or changed"
            ) from error
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            raise StoreError(f"{path} is no page of a store of activations")
        if said.get("version") != VERSION:
            raise StoreError(
                f"{folder} has version {said.get('version')}, this library reads version {VERSION}"
            )
        try:
            given = {name: said[name] for name in cls.__dataclass_fields__}
            return cls(**{**given, "prompts": tuple(given["prompts"])})
        except (KeyError, TypeError) as error:
            raise StoreError(f"{path} has another form ({error!r}); collect again") from error
