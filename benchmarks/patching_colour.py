"""Where does a shipped toy model keep colour? Patching, graded exactly, and what attribution says.

    python benchmarks/patching_colour.py [--seeds 24] [--write]

For each pair of captions: which blocks' and heads' cross-attention, and which steps, make the
corrupted run draw the clean run's colour (whole runs, graded by a program, guidance as sampled);
and how well first-order and integrated attribution rank what exact teacher-forced patching finds.
With --write the figures and numbers in docs/ are replaced.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.patching import (
    PatchingResult,
    activation_patching,
    graded,
    latent_projection,
    patch_steps,
)
from diffusion_lens.analyses.patching.attribution_patching import attribution_patching
from diffusion_lens.toys import call_defaults

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "methods" / "activation_patching.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PAIRS = {
    "square": ("a red square", "a blue square"),
    "circle": ("a red circle", "a blue circle"),
}
"""Blue circles are held out in training; blue and red squares are not."""

STEPS = 6
HEADS = {"sites": "blocks.*.cross_attn.img.hook_z", "axes": ("block", "head")}
WINDOW = 2
BEST = 3
"""Heads are patched alone in at most this many blocks, those with the largest effects."""


def measure(
    model: HookedDiffusion, pair: tuple[str, str], seeds: Sequence[int]
) -> dict[str, PatchingResult]:
    """Every sweep over one pair."""
    settings = call_defaults(model.pipe, steps=STEPS)
    common: dict[str, Any] = {"seeds": seeds, **settings}
    runs = {**common, "metric": graded(pair[0], part="colour"), "batch_size": 20}
    single = {**common, "metric": latent_projection, **HEADS, "steps": range(0, STEPS, 2)}
    runs |= {"mode": "on-trajectory", "branch": None}
    blocks = activation_patching(model, *pair, sites=HEADS["sites"], axes=("block",), **runs)
    best = [
        f"blocks.{one['block']}.cross_attn.img.hook_z"
        for number, one in enumerate(blocks.top(BEST))
        if one["effect"] > 0 or number == 0
    ]
    if not best:
        raise SystemExit(f"{pair}: with no seed do the two images differ in the colour graded")
    heads = activation_patching(model, *pair, sites=best, axes=HEADS["axes"], **runs)
    return {
        "blocks": blocks,
        "heads": heads,
        "steps": patch_steps(model, *pair, window=WINDOW, **{**runs, "mode": "window"}),
        "exact": activation_patching(model, *pair, batch_size=32, **single),
        "first-order": attribution_patching(model, *pair, **single),
        "integrated": attribution_patching(model, *pair, **single, method="integrated"),
    }


def told(name: str, pair: tuple[str, str], found: dict[str, PatchingResult]) -> tuple[str, dict]:
    """Markdown and json of one pair."""
    heads = found["heads"]
    counted = int((~heads.samples.isnan()).any(0).any(0).sum())
    exact = found["exact"]
    ranks = {way: exact.rank_correlation(found[way]) for way in ("first-order", "integrated")}
    lines = [
        f"### “{pair[0]}” into “{pair[1]}”",
        "",
        f"{len(heads.seeds)} seeds, {STEPS} steps; in {counted} the clean image has the clean "
        "colour and the corrupted one has not. Effect: share of these that change to the clean "
        "colour (95 % interval).",
        "",
        "| patched, at all steps | effect |",
        "|---|---|",
        *(f"| cross-attention of block {one['block']} | {_share(one)} |"
          for one in found["blocks"].top(100) if one["effect"] > 0),
        "| every other block | 0 % |",
        *(f"| block {one['block']}, head {one['head']} alone | {_share(one)} |"
          for one in heads.top(4)),
        "",
        f"| text embedding patched at {WINDOW} steps | effect |",
        "|---|---|",
        *(f"| {one['step']} to {one['step'] + WINDOW - 1} | {_share(one)} |"
          for one in found["steps"].records()),
        "",
        "Teacher-forced, single steps: how far one head moves the prediction towards the clean one "
        f"(`latent_projection`, mean of {len(range(0, STEPS, 2))} steps).",
        "",
        f"![Effect of each head](../assets/patching_colour_{name}.svg)",
        "",
        f"Rank correlation of these {exact.effects.numel()} effects with attribution: "
        f"{ranks['first-order']:.3f} (first order), {ranks['integrated']:.3f} (integrated "
        "gradients, 5 points).",
        "",
    ]  # fmt: skip
    table = {
        way: {"axes": one.axes, "labels": one.labels, "effects": _rounded(one.effects),
              "low": _rounded(one.low), "high": _rounded(one.high)}
        for way, one in found.items()
    }  # fmt: skip
    page = "\n".join(lines)
    about = {"page": page, "pair": pair, "counted": counted, "ranks": ranks, "found": table}
    return page, about


def _share(one: dict[str, Any]) -> str:
    return f"{100 * one['effect']:.0f} % ({100 * one['low']:.0f} to {100 * one['high']:.0f})"


def _rounded(values: torch.Tensor) -> Any:
    return [[round(float(one), 4) for one in row] for row in values.reshape(len(values), -1)]


def drawing(result: PatchingResult, *, title: str) -> str:
    """A grid of blocks by heads as SVG, with its numbers."""
    cell, left, top = 46, 70, 60
    blocks, heads = result.labels["block"], result.labels["head"]
    width, height = left + cell * len(blocks) + 20, top + cell * len(heads) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="22" font-size="15">{title}</text>',
    ]
    for column, block in enumerate(blocks):
        x = left + cell * (column + 0.5)
        parts.append(
            f'<text x="{x}" y="{top - 10}">{"block " if column == 0 else ""}{block}</text>'
        )
        for row, head in enumerate(heads):
            y = top + cell * row
            value = float(result.effects[column, row])
            shade = max(0.0, min(1.0, value))
            dark = (68, 1, 84)
            fill = f"rgb{tuple(round(255 + (end - 255) * shade) for end in dark)}"
            ink = "white" if shade > 0.5 else "black"
            parts += [
                f'<rect x="{x - cell / 2}" y="{y}" width="{cell}" height="{cell}" fill="{fill}" '
                'stroke="#ccc"/>',
                f'<text x="{x}" y="{y + cell / 2 + 5}" fill="{ink}">{value:.2f}</text>',
            ]
            if column == 0:
                parts.append(f'<text x="{left - 34}" y="{y + cell / 2 + 5}">head {head}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes-unet")
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--pair", action="append", choices=PAIRS)
    parser.add_argument("--write", action="store_true", help="replace figures and numbers in docs/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = HookedDiffusion.toy(options.model)
    for name in options.pair or PAIRS:
        start = time.process_time()
        found = measure(model, PAIRS[name], range(options.seeds))
        page, table = told(name, PAIRS[name], found)
        print(f"{page}\n{time.process_time() - start:.0f} s of CPU time\n", flush=True)
        if options.write:
            first, other = (caption.split()[1] for caption in PAIRS[name])
            title = f"one head of cross-attention: from {other} to {first}"
            picture = DOCS / "assets" / f"patching_colour_{name}.svg"
            picture.write_text(drawing(found["exact"], title=title), encoding="utf-8")
            write(name, table)


def write(name: str, table: dict[str, Any]) -> None:
    """Replace the numbers of one pair in docs/."""
    where = DOCS / "assets" / "patching_colour.json"
    tables = json.loads(where.read_text(encoding="utf-8")) if where.is_file() else {}
    tables[name] = table
    where.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    pages = [tables[one]["page"] for one in PAIRS if one in tables]
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(head + "\n".join([BEGIN, "", *pages, END]) + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
