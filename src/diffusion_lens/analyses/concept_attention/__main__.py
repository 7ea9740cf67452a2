"""The benchmark and the ablations of ConceptAttention on a toy model, as tables and figures.

python -m diffusion_lens.analyses.concept_attention --out docs/assets/concept_attention
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.concept_attention.ablations import ablate
from diffusion_lens.analyses.concept_attention.toy_benchmark import compare
from diffusion_lens.toys.benchmark.segmentation import segmentation_table


def main() -> None:
    """Run both, print the tables and write everything to a folder."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.analyses.concept_attention")
    parser.add_argument("--model", default="shapes-mmdit", help="a toy model with concept streams")
    parser.add_argument("--count", type=int, default=60, help="scenes")
    parser.add_argument("--noise", type=float, default=0.5, help="noise level, in (0, 1]")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--figures", default="html", help="html, png or svg")
    arguments = parser.parse_args()
    from diffusion_lens import viz

    model = HookedDiffusion.toy(arguments.model)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    table = segmentation_table(compare(model, noise_level=arguments.noise, count=arguments.count))
    (out / "benchmark.md").write_text(table + "\n", encoding="utf-8")
    found = ablate(model, noise_level=arguments.noise, count=arguments.count)
    found.write(out)
    for name, figure in found.figures().items():
        viz.write(figure, out / f"{name.replace(' ', '_')}.{arguments.figures}")
    sys.stdout.write(f"{table}\n\n{found.markdown()}")


if __name__ == "__main__":
    main()
