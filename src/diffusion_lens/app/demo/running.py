"""Running the demo's parts one after another into a report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_lens import __version__
from diffusion_lens.app.demo.chapters import (
    concepts_in_the_image,
    heads_of_concepts,
    heads_that_carry_a_word,
    maps_against_truth,
    words_in_the_image,
)
from diffusion_lens.app.demo.setting import Found, Setting, Size
from diffusion_lens.app.report import Report
from diffusion_lens.app.report_parts import Number, Numbers

DEMO_PARTS: dict[str, Callable[[Setting], Found]] = {
    "attention maps of words": words_in_the_image,
    "ConceptAttention": concepts_in_the_image,
    "maps against exact masks": maps_against_truth,
    "head relevance and weakening": heads_of_concepts,
    "activation patching": heads_that_carry_a_word,
}
"""What the demo does, in order."""


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        page: The report.
        numbers: The numbers that matter.
        seconds: How long it took, loading included.
    """

    page: Path
    numbers: tuple[Number, ...]
    seconds: float


def run_demo(
    folder: str | Path,
    *,
    size: Size | None = None,
    tell: Callable[[str], object] = lambda _: None,
    show_progress: bool = True,
) -> Demo:
    """Run every part on the shipped toy models, on a CPU.

    Args:
        folder: Gets `report.html`, the images and the results.
        size: How much is drawn.
        tell: Told what is done next.
        show_progress: Show progress bars.

    Returns:
        Where the report is, and its numbers.
    """
    start = time.perf_counter()
    where = Path(folder)
    setting = Setting(size or Size(), show_progress=show_progress)
    found = []
    with _one_thread():
        for number, (name, part) in enumerate(DEMO_PARTS.items(), 1):
            tell(f"[{number}/{len(DEMO_PARTS)}] {name}")
            one = part(setting)
            _keep(one, where)
            found.append(one)
    numbers = tuple(one.number for one in found if one.number is not None)
    seconds = time.perf_counter() - start
    page = _report(found, numbers, seconds).write(where)
    return Demo(page, numbers, seconds)


def _report(found: Sequence[Found], numbers: Sequence[Number], seconds: float) -> Report:
    report = Report("diffusion_lens: a first look")
    report.lead += [
        "Two small diffusion models that ship with the package, opened up on a CPU. They draw "
        "shapes, and a program knows what is right, so that methods can be checked and not only "
        "looked at. Pictures are 32 × 32 pixels.",
        Numbers(numbers),
    ]
    for one in found:
        report.add(one.title, *one.parts)
    report.add(
        "What next",
        f"Made in {seconds:.0f} seconds by diffusion_lens {__version__}. The same calls work on "
        "full models: diffusion-lens --help, or HookedDiffusion.from_pretrained in Python. Results "
        "of this page lie beside it, in results/.",
    )
    return report


def _keep(found: Found, folder: Path) -> None:
    """Write a part's images and results beside the report."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in (found.images or {}).items():
        image.save(folder / f"{name}.png")
    for name, result in (found.results or {}).items():
        result.save(folder / "results" / name)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """On matrices of the toys' size threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
