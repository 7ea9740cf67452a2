"""The runs that ablations take values from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusion_lens import Run
from diffusion_lens.analyses.patching.pair import Pair, said_for_each


@dataclass(frozen=True)
class References:
    """Runs of other prompts with the noise of a base's samples, or of its own prompt.

    Attributes:
        prompts: The other prompts; row number i takes the one of number i, from the first on again
            where there are fewer. None stands for the base's own.
        batch_size: Rows of a batch.
    """

    prompts: tuple[str, ...]
    batch_size: int

    def batches(self, pair: Pair, *, rows: int) -> Iterator[Run]:
        """The runs, batch by batch.

        Args:
            pair: Its base is what is ablated.
            rows: How many rows there are together; the samples' noise comes again where they are
                more than samples.
        """
        for start in range(0, rows, self.batch_size):
            numbers = range(start, min(start + self.batch_size, rows))
            samples = [number % len(pair.seeds) for number in numbers]
            if not self.prompts:
                yield pair.batch(pair.base, samples)
                continue
            prompts = [self.prompts[number % len(self.prompts)] for number in numbers]
            yield _run(pair, prompts, samples)


def _run(pair: Pair, prompts: Sequence[str], samples: Sequence[int]) -> Run:
    """Prompts with the settings of the base, each from the noise of a sample."""
    settings = dict(pair.base.run.settings)
    settings |= said_for_each(settings, len(prompts))
    if pair.latents is not None:
        settings["latents"] = pair.latents[list(samples)]
    return Run(prompts, seed=tuple(pair.seeds[sample] for sample in samples), **settings)
