"""Timing by ratio: every measured run stands between two plain ones, all in one process.

CPU time of the process is compared, with one thread, so that other load on the machine shows up in
plain and measured runs alike. The control is a plain run measured like the others.

The C library's allocator is told to keep the memory that it has. Left alone it gives large blocks
back and asks for them again or not, as its thresholds have moved: on the Flux of `models.py` that
is 30,000 page faults or none in one evaluation, 5 to 10 per cent of its time, by chance. Python's
garbage collector leaves alone what was there before: looking through all modules takes 250 ms, in
one run of many.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""What tells glibc's allocator to keep what it has; other C libraries take no notice."""


def measure_steadily() -> None:
    """One thread, and this script anew with `KEEP_MEMORY` set; to be called before measuring.

    Variables that begin with `MALLOC_` are left as they are, and then nothing is run anew.
    """
    torch.set_num_threads(1)
    if not any(name.startswith("MALLOC_") for name in os.environ):
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP_MEMORY}
        )


@dataclass(frozen=True)
class Ratio:
    """CPU time of a run in units of the plain runs around it.

    Attributes:
        median: Median over rounds.
        error: Standard error of the median (1.25 standard deviations / sqrt(rounds)); NaN of one
            round.
        extra_ms: Median CPU milliseconds more than plain.
    """

    median: float
    error: float
    extra_ms: float

    def __str__(self) -> str:
        """Ratio and standard error."""
        return f"{self.median:.3f} ± {self.error:.3f} ({self.extra_ms:+.1f} ms)"


def bracket(
    plain: Callable[[], object], measured: Mapping[str, Callable[[], object]], *, rounds: int
) -> tuple[float, dict[str, Ratio]]:
    """Measure every run between two plain ones.

    Args:
        plain: The run to compare with.
        measured: Runs by name.
        rounds: How often each is measured.

    Returns:
        Median CPU seconds of a plain run, and a ratio for each measured run.
    """
    for run in (plain, *measured.values()):
        run()
    ratios: dict[str, list[float]] = {name: [] for name in measured}
    extras: dict[str, list[float]] = {name: [] for name in measured}
    gc.collect()
    gc.freeze()
    try:
        plains = [_cpu_seconds(plain)]
        for _ in tqdm(range(rounds), desc="rounds", leave=False):
            for name, run in measured.items():
                seconds = _cpu_seconds(run)
                plains.append(_cpu_seconds(plain))
                around = (plains[-1] + plains[-2]) / 2
                ratios[name].append(seconds / around)
                extras[name].append((seconds - around) * 1e3)
    finally:
        gc.unfreeze()
    summary = {
        name: Ratio(
            statistics.median(found),
            1.25 * statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else math.nan,
            statistics.median(extras[name]),
        )
        for name, found in ratios.items()
    }
    return statistics.median(plains), summary


def _cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start
