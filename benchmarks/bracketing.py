"""Timing by ratio: every measured run stands between two plain ones, all in one process.

CPU time of the process is compared, with one thread, so that other load on the machine shows up in
plain and measured runs alike. The control is a plain run measured like the others.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm


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
    plains = [_cpu_seconds(plain)]
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, run in measured.items():
            seconds = _cpu_seconds(run)
            plains.append(_cpu_seconds(plain))
            around = (plains[-1] + plains[-2]) / 2
            ratios[name].append(seconds / around)
            extras[name].append((seconds - around) * 1e3)
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
