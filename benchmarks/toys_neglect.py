"""Two-object neglect on a toy, with and without Attend-and-Excite: `benchmarks/toys_neglect.py`.

The toys neglect next to nothing at the guidance that they were made for, so guidance is turned
down until they do: `u + g (c - u)` with g below 1, which pipelines do not offer and hooks do.
Guidance, step sizes and resolutions are chosen on one half of the captions, scores are of the
other.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, toys
from diffusion_lens.analyses import HeadRelevance, attend_and_excite, head_relevance
from diffusion_lens.toys.benchmark.editing import edit_tasks, neglected, wilson
from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.world import CONCEPTS

GUIDANCES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3)
STEP_SIZES = (1.0, 3.0, 10.0, 30.0)
RESOLUTIONS = (16, 8)
LEAST = 0.2


class WeakGuidance:
    """Hooks that guide by another scale than the pipeline's, from both branches' predictions."""

    def __init__(self, scale: float) -> None:
        """Guide by this scale."""
        self.scale = scale
        self.found: dict[str, Tensor] = {}

    def hooks(self) -> list[tuple[str, Callable[..., Any]]]:
        """For `fwd_hooks`."""
        return [("hook_noise_pred", self.keep), ("hook_guided_pred", self.guide)]

    def keep(self, prediction: Tensor, hook: HookContext) -> None:
        """Remember a branch's prediction."""
        self.found[hook.branch] = prediction.detach().clone()

    def guide(self, _guided: Tensor, _hook: HookContext) -> Tensor:
        """Put the other guidance in place of the pipeline's."""
        without, given = self.found["uncond"], self.found["cond"]
        return without + self.scale * (given - without)


Draw = Callable[[str, int], Any]


def plain(model: HookedDiffusion, settings: Mapping[str, Any]) -> Draw:
    """The pipeline's own images."""
    return lambda caption, seed: model(caption, seed=seed, **settings).images[0]


def excited(
    model: HookedDiffusion,
    settings: Mapping[str, Any],
    step_size: float,
    resolution: int,
    relevance: HeadRelevance | None,
) -> Draw:
    """With Attend-and-Excite on the two shapes."""
    concepts = None if relevance is None else "Shape"

    def draw(caption: str, seed: int) -> Any:
        words = [str(thing.shape) for thing in read_caption(caption).things]
        found = attend_and_excite(
            model,
            caption,
            words=words,
            relevance=relevance,
            concepts=concepts,
            step_size=step_size,
            resolution=resolution,
            thresholds={},
            seed=seed,
            **settings,
        )
        return found.images[0]

    return draw


def share(draw: Draw, captions: Sequence[str]) -> float:
    """Share of captions of which a thing is missing or wrong; caption i has the seed i."""
    found = neglected([draw(one, seed) for seed, one in enumerate(captions)], captions)
    return sum(found) / len(found)


def shown(name: str, value: float, count: int) -> str:
    """A row of the table."""
    low, high = wilson(value, count)
    return f"| {name} | {100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f}) |"


def main() -> None:
    """Choose a guidance and step sizes on one half, score on the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="shapes-unet", choices=toys.names())
    parser.add_argument("--count", type=int, default=40, help="captions in each half")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = HookedDiffusion.toy(arguments.model)
    settings = toys.call_defaults(model, steps=arguments.steps)
    pairs = [
        one.caption for one in toys.test_captions() if len(read_caption(one.caption).things) == 2
    ]
    distinct = [
        one for one in pairs if len({thing.shape for thing in read_caption(one).things}) == 2
    ]
    chosen, scored = distinct[0::2][: arguments.count], distinct[1::2][: arguments.count]
    relevance = head_relevance(
        model,
        [task.source for task in edit_tasks(36, seed=1)],
        concepts=dict(CONCEPTS),
        batch_size=12,
        per_step=False,
        show_progress=False,
        **settings,
    )
    for scale in GUIDANCES:
        with model.hooks(WeakGuidance(scale).hooks()):
            found = share(plain(model, settings), chosen)
        sys.stdout.write(shown(f"guidance {scale}, chosen on", found, len(chosen)) + "\n")
        if found >= LEAST:
            break
    else:
        sys.stdout.write("at no guidance are enough things neglected\n")
        return
    with model.hooks(WeakGuidance(scale).hooks()):
        sys.stdout.write(shown("plain", share(plain(model, settings), scored), len(scored)) + "\n")
        for name, vectors in (("A&E", None), ("A&E-HRV", relevance)):
            tried = {
                (size, side): share(excited(model, settings, size, side, vectors), chosen)
                for size, side in itertools.product(STEP_SIZES, RESOLUTIONS)
            }
            sys.stdout.write(f"{name}, by step size and resolution: {tried}\n")
            best = min(tried, key=lambda one: tried[one])
            value = share(excited(model, settings, *best, vectors), scored)
            row = f"{name}, step size {best[0]:g}, resolution {best[1]}"
            sys.stdout.write(shown(row, value, len(scored)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
