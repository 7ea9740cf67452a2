"""Maps of words against exact masks on the shipped toys, and the word "orange" diagnosed.

    python benchmarks/toys_maps.py [--count 60] [--noise 0.5] [--model shapes-unet] [--fast]

Segmentation: renders of held-out scenes are noised and denoised once; each method gives a map for
each phrase. Heads are chosen by head relevance vectors made on the same toy. ConceptAttention, on
the model with joint attention, is asked for the phrases of the caption as its concepts.

Diagnosis: the scores of `diagnose_word` for "orange" in captions that fix its sense.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.attention_maps import AttentionMaps, attention_maps
from diffusion_lens.analyses.concept_attention.toy_benchmark import saliency_method
from diffusion_lens.analyses.diagnose_word import diagnose_word
from diffusion_lens.analyses.head_relevance import HeadRelevance, head_relevance
from diffusion_lens.toys import call_defaults
from diffusion_lens.toys.benchmark.baselines import exact_on_grid, random_map
from diffusion_lens.toys.benchmark.polysemy import sense_prompts
from diffusion_lens.toys.benchmark.segmentation import (
    SaliencyMethod,
    Task,
    score_segmentation,
    segmentation_table,
    segmentation_tasks,
)
from diffusion_lens.toys.shapes.evaluation import test_captions
from diffusion_lens.toys.shapes.world import CONCEPTS

WORD = "orange"
CONCEPT_OF = {
    "object": "Shape",
    "colour": "Colour",
    "shape": "Shape",
    "texture": "Texture",
    "background": "Background",
}
"""For each kind of query the concept whose heads are taken."""

Choice = Callable[[str], Mapping[int, float]]
"""From a concept to weights of heads, by their place on the head axis."""


@dataclass(frozen=True)
class Setting:
    """A model, how it is called, and how much is done."""

    model: HookedDiffusion
    call: dict[str, Any]
    captions: int
    steps: int


def vectors(setting: Setting) -> HeadRelevance:
    """Head relevance of the toy's six concepts; the word with two senses stands for none."""
    concepts = {name: [word for word in words if word != WORD] for name, words in CONCEPTS.items()}
    listed = [one.caption for one in test_captions()]
    spread = listed[:: len(listed) // setting.captions][: setting.captions]
    call = {**setting.call, "num_inference_steps": setting.steps}
    return head_relevance(
        setting.model, spread, concepts=concepts, batch_size=1, show_progress=False, **call
    )


class Maps:
    """The maps of every head for a task, made once and shared by all choices of heads."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.of = functools.lru_cache(maxsize=1)(self._of)

    def _of(self, caption: str, pixels: bytes, level: float, seed: int) -> AttentionMaps:
        image = Image.frombytes("RGB", (32, 32), pixels)
        given = {"image": image, "noise_level": level, "seed": seed}
        model = self.setting.model
        return attention_maps(model, caption, keep="head", **given, **self.setting.call)

    def daam(self, task: Task) -> np.ndarray:
        """The published tool's way: no bottleneck, no maps of an eighth of the finest."""
        given = {"image": Image.fromarray(task.image), "noise_level": task.noise_level}
        given |= {"seed": task.seed, "preset": "daam"}
        maps = attention_maps(self.setting.model, task.caption, **given, **self.setting.call)
        words = maps.maps[0][[at for at, label in enumerate(maps.labels) if label[0] != "["]]
        found = [words[list(query.words)].mean(0) for query in task.queries]
        return torch.stack(found).double().numpy()

    def method(self, choice: Choice) -> SaliencyMethod:
        """A method from a choice of heads."""

        def answer(task: Task) -> np.ndarray:
            maps = self.of(task.caption, task.image.tobytes(), task.noise_level, task.seed)
            words = maps.maps[0][:, [at for at, label in enumerate(maps.labels) if label[0] != "["]]
            found = []
            for query in task.queries:
                weights = choice(CONCEPT_OF[query.kind])
                factors = torch.tensor(list(weights.values()))
                heads = words[list(weights)][:, list(query.words)].mean(1)
                found.append(torch.einsum("h,hyx->yx", factors, heads) / factors.sum())
            return torch.stack(found).double().numpy()

        return answer


def choices(relevance: HeadRelevance, *, fraction: float = 0.25) -> dict[str, Choice]:
    """Which heads each method takes."""
    count = len(relevance.heads)
    some = round(fraction * count)

    def first(concept: str, order: str) -> dict[int, float]:
        return dict.fromkeys(relevance.order(concept, order)[:some], 1.0)

    def weighted(concept: str) -> dict[int, float]:
        return dict(enumerate(relevance.vector(concept).tolist()))

    return {
        "all heads": lambda _: dict.fromkeys(range(count), 1.0),
        "selective: most relevant 25 %": lambda concept: first(concept, "most"),
        "selective: weighted by relevance": weighted,
        "random 25 %": lambda concept: first(concept, "random"),
        "least relevant 25 %": lambda concept: first(concept, "least"),
    }


def table(setting: Setting, relevance: HeadRelevance, *, level: float, count: int) -> str:
    """Methods side by side."""
    maps = Maps(setting)
    methods: dict[str, SaliencyMethod] = {"random map": random_map, "DAAM": maps.daam}
    methods |= {name: maps.method(choice) for name, choice in choices(relevance).items()}
    if setting.model.spec.concepts is not None:
        methods["ConceptAttention"] = saliency_method(setting.model)
    methods["exact mask on 16 x 16 cells"] = exact_on_grid(16)
    tasks = segmentation_tasks(count, noise_level=level)
    return segmentation_table({k: score_segmentation(v, tasks) for k, v in methods.items()})


def diagnosis(setting: Setting, relevance: HeadRelevance) -> str:
    """Scores of the word by the heads of Colour and of Shape, for captions of each sense."""
    lines = [
        "| sense | score | Colour | Shape | Shape larger than in the other sense |",
        "|---" * 5 + "|",
    ]
    found = {}
    for sense in ("fruit", "colour"):
        prompts = [one.caption for one in sense_prompts() if one.sense == sense]
        call = {**setting.call, "num_inference_steps": setting.steps}
        rows: dict[str, list[Tensor]] = {}
        for prompt in prompts:
            given = (setting.model, prompt, WORD, ["Colour", "Shape"])
            one = diagnose_word(*given, relevance=relevance, **call)
            for score, value in one.scores.items():
                rows.setdefault(score, []).append(value[0])
        found[sense] = {score: torch.stack(values) for score, values in rows.items()}
    for score in found["fruit"]:
        balance = {
            sense: values[score][:, 1] - values[score][:, 0] for sense, values in found.items()
        }
        above = (balance["fruit"][:, None] > balance["colour"][None]).float().mean()
        for sense, values in found.items():
            means = values[score].mean(0).tolist()
            shown = f"{above:.2f}" if sense == "fruit" else ""
            lines.append(f"| {sense} | {score} | {means[0]:.3f} | {means[1]:.3f} | {shown} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="scenes")
    parser.add_argument("--noise", type=float, action="append", help="default: 0.2, 0.5, 0.8")
    parser.add_argument("--model", action="append", choices=("shapes-unet", "shapes-mmdit"))
    parser.add_argument("--fast", action="store_true", help="a few scenes and captions")
    parser.add_argument("--relevance", help="folder of saved vectors, in place of new ones")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.model or ("shapes-unet", "shapes-mmdit"):
        model = HookedDiffusion.toy(name)
        call = call_defaults(model.pipe)
        captions, steps = (4, 2) if options.fast else (108, 8)
        setting = Setting(model, call, captions, steps)
        relevance = HeadRelevance.load(options.relevance) if options.relevance else vectors(setting)
        for level in options.noise or (0.2, 0.5, 0.8):
            count = 4 if options.fast else options.count
            print(f"\n{name}, noise level {level}, {count} scenes: mAP / mIoU / pixel accuracy\n")
            print(table(setting, relevance, level=level, count=count), flush=True)
        if name == "shapes-unet":
            print(f"\n{name}: {WORD!r} by the heads of two concepts\n")
            print(diagnosis(setting, relevance), flush=True)


if __name__ == "__main__":
    main()
