"""The tables of docs/families.md: described families, with their tiny models, and other denoisers.

    python mkdocs_hooks/families.py

Writes the page between its two marks; a test compares it with what stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from diffusion_lens import HookedDiffusion
from diffusion_lens.architectures.shipped import RUN, SHIPPED
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.architectures.undescribed import UNDESCRIBED
from diffusion_lens.testing import TINY_FAMILIES, tiny_denoiser

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
MARKS = "<!-- undescribed: begin -->", "<!-- undescribed: end -->"
HEAD = (
    "| family | denoiser | tiny model | pipeline | modular | streams | points of a block | "
    "text patterns | concepts | head relevance | absent, and why |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)
MODULAR = {
    "sdxl": ("StableDiffusionXLAutoBlocks",),
    "sd3": ("StableDiffusion3AutoBlocks",),
    "flux": ("FluxAutoBlocks",),
    "flux2": ("Flux2AutoBlocks", "Flux2KleinBaseAutoBlocks"),
    "qwen_image": ("QwenImageAutoBlocks",),
    "z_image": ("ZImageAutoBlocks",),
    "ltx_video": ("LTXAutoBlocks",),
    "wan": ("WanBlocks",),
}
"""Blocks of the modular pipelines that tests compare with the classic one, by tiny model."""


def rows() -> Iterator[str]:
    """One row for each tiny model, in the order of the shipped descriptions."""
    models = {name: HookedDiffusion(tiny_denoiser(name)[0]) for name in TINY_FAMILIES}
    for spec in SHIPPED:
        tiny = [name for name, model in models.items() if model.spec.denoiser == spec.denoiser]
        for name in tiny:
            yield _row(spec, name, models[name])


def _row(spec: DenoiserSpec, name: str, model: HookedDiffusion) -> str:
    points = [point for point in model.points.values() if point.block is not None]
    kinds = {point.name.split(".", 2)[2] for point in points}
    streams = sorted({point.stream for point in points if point.stream})
    cells = (
        spec.family,
        f"`{spec.denoiser}`",
        f"`{name}`",
        "run" if spec in RUN else "read",
        ", ".join(f"`{blocks}`" for blocks in MODULAR.get(name, ())) or "no",
        ", ".join(streams),
        str(len(kinds)),
        "yes" if model.text_pattern_sites() else "no",
        _concepts(spec),
        "no" if spec.concepts is None and spec.to_context is None else "yes",
        _absent(model, spec),
    )
    return f"| {' | '.join(cells)} |"


def _concepts(spec: DenoiserSpec) -> str:
    if spec.concepts is not None:
        return "yes"
    return f"no: {spec.without_concepts}" if spec.without_concepts else "no"


def _absent(model: HookedDiffusion, spec: DenoiserSpec) -> str:
    """The reasons, each once, with how many names they take away."""
    from diffusion_lens.architectures.catalogue import find_absent

    names: dict[str, set[str]] = {}
    for one in find_absent(model.denoiser, spec):
        names.setdefault(one.reason, set()).add(re.sub(r"^blocks\.\d+\.", "", one.name))
    said = [f"{_listed(found)}: {reason}" for reason, found in names.items()]
    said += [f"`{path}`: {reason}" for path, reason in spec.apart.items()]
    return "; ".join(said) or "nothing"


def _listed(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"`{first}`" + (f" and {len(others)} more" if others else "")


def undescribed() -> str:
    """The denoisers without a description, by reason, as they stand between their marks."""
    named: dict[str, list[str]] = {}
    for name, reason in sorted(UNDESCRIBED.items()):
        named.setdefault(reason, []).append(f"`{name}`")
    rows = (f"| {', '.join(names)} | {reason} |" for reason, names in named.items())
    return "\n".join(("| denoiser | why |", "|---|---|", *rows))


def table() -> str:
    """The table as it stands between the marks."""
    return "\n".join((*HEAD, *rows()))


def written(page: str) -> str:
    """A page with both tables put between their marks."""
    for begin, end, made in ((BEGIN, END, table()), (*MARKS, undescribed())):
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{made}\n\n{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
