"""What a run holds: live tensor bytes, and peak memory, each in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from typing import Any

import torch

FIXED_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
"""Every large block goes back to the system when it is freed, so that peaks can be compared."""


def live_bytes() -> int:
    """Bytes of every tensor that Python can reach."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor):  # isinstance would wake lazy objects
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def in_fresh_process(script: str, *arguments: object) -> Any:
    """Run a benchmark's script again and read the JSON of its last line.

    Args:
        script: Its path.
        *arguments: Of its command line.

    Returns:
        What the JSON says.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, script, *map(str, arguments)]
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True, env=kept | FIXED_THRESHOLD
    )
    return json.loads(printed.stdout.splitlines()[-1])
