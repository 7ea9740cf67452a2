"""What a sweep is told, whether it patches or ablates, single steps or whole runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.patching.kept import Kept
from diffusion_lens.analyses.patching.outcome import Metric
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.plan import Plan
from diffusion_lens.analyses.patching.scoreboard import Scoreboard


@dataclass(frozen=True, eq=False)
class Sweep:
    """One sweep.

    Attributes:
        model: The model.
        pair: Source and base.
        plan: The patches.
        metric: What they are scored by.
        steps: Steps of hook points whose Site says none; None for all.
        batch_size: Rows of a batch.
        restart: Whether patches start in the middle.
        kept: The folder to keep scores in, or None.
        show_progress: Whether there is a bar.
        doing: What the bar calls it.
        unit: What the bar counts.
    """

    model: HookedDiffusion
    pair: Pair
    plan: Plan
    metric: Metric
    steps: Sequence[int] | None
    batch_size: int
    restart: bool
    kept: Kept | None
    show_progress: bool
    doing: str = "patching"
    unit: str = "patches"

    def scoreboard(self, steps: tuple[int, ...]) -> Scoreboard:
        """A board for its patches, with what is kept of them.

        Args:
            steps: The steps (or windows) that are scored apart.
        """
        return Scoreboard(self.plan.cells, steps, len(self.pair.seeds), self.kept)

    def fill(
        self, board: Scoreboard, total: int, run: Callable[[Callable[[int], Any]], None]
    ) -> None:
        """Run with a progress bar; what is known is written at the end, however it ends.

        Args:
            board: The scores.
            total: How many patched rows there are.
            run: Scores what is not yet on the board, and tells how many rows are done.
        """
        bar = {"desc": self.doing, "unit": f" {self.unit}", "delay": 2, "leave": False}
        try:
            with tqdm(total=total, **bar, disable=not self.show_progress) as shown:
                run(shown.update)
        finally:
            board.write()
