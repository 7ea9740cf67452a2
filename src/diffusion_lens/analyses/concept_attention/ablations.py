"""The ablations of the ConceptAttention paper on a toy model: layer, noise, space, attention.

Source: ConceptAttention, arXiv 2502.04320, figure 7 and tables 3 and 4. Differs: a toy model and
exact masks in place of ImageNet-Segmentation, with foreground and background mIoU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.concept_attention.toy_benchmark import Scores, saliency_method
from diffusion_lens.tables import write_table
from diffusion_lens.toys.benchmark.segmentation import (
    KINDS,
    score_segmentation,
    segmentation_table,
    segmentation_tasks,
)

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SPACES = ("z", "attn_out", "value", "query-key")
ATTENDED = {
    "nothing": (),
    "concepts": ("concepts",),
    "image": ("image",),
    "both": ("concepts", "image"),
}


@dataclass(frozen=True)
class Ablations:
    """Scores by what was changed, how, and kind of query.

    Attributes:
        tables: Ablation (`"layer"`, `"noise level"`, `"space"`, `"attends to"`) to setting to
            scores.
        noise_level: That of every ablation but its own.
        count: Scenes.
    """

    tables: Mapping[str, Mapping[str, Scores]]
    noise_level: float
    count: int

    def markdown(self) -> str:
        """Each ablation as a table of mAP / mIoU / pixel accuracy in per cent."""
        parts = [
            segmentation_table(rows).replace("| method |", f"| {name} |", 1)
            for name, rows in self.tables.items()
        ]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write `ablations.json`, `ablations.csv` and `ablations.md` into a folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        rows = [
            {"ablation": name, "setting": setting, "kind": kind, **asdict(score)}
            for name, settings in self.tables.items()
            for setting, scores in settings.items()
            for kind, score in scores.items()
        ]
        about = {"noise_level": self.noise_level, "scenes": self.count, "scores": rows}
        (path / "ablations.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        write_table(rows, path / "ablations.csv")
        (path / "ablations.md").write_text(self.markdown(), encoding="utf-8")
        return path

    def figures(self) -> dict[str, Any]:
        """A plotly figure of mAP for each ablation."""
        from diffusion_lens import viz

        found = {}
        for name, rows in self.tables.items():
            kinds = [kind for kind in KINDS if all(kind in scores for scores in rows.values())]
            precision = [[row[kind].average_precision for kind in kinds] for row in rows.values()]
            if name == "noise level":
                curves = dict(zip(kinds, zip(*precision, strict=True), strict=True))
                levels = [float(setting) for setting in rows]
                found[name] = viz.curves(levels, curves, x_title=name, y_title="mAP")
            else:
                found[name] = viz.head_grid(
                    precision, rows=list(rows), columns=kinds, value_name="mAP", row_title=name
                )
        return found


def ablate(model: HookedDiffusion, *, noise_level: float = 0.5, count: int = 60) -> Ablations:
    """Run every ablation.

    Args:
        model: A toy model with concept streams.
        noise_level: That of every ablation but its own.
        count: Scenes of two objects, the same for every setting.
    """
    tables = {
        name: {
            setting: _scores(model, how, noise_level=noise_level, count=count)
            for setting, how in settings.items()
        }
        for name, settings in _settings(model).items()
    }
    tables["noise level"] = {
        str(level): _scores(model, {}, noise_level=level, count=count) for level in LEVELS
    }
    return Ablations(tables, noise_level, count)


def _scores(
    model: HookedDiffusion, how: Mapping[str, Any], *, noise_level: float, count: int
) -> Scores:
    tasks = segmentation_tasks(count, noise_level=noise_level)
    return score_segmentation(saliency_method(model, **how), tasks)


def _settings(model: HookedDiffusion) -> dict[str, dict[str, dict[str, Any]]]:
    """What each ablation but that of the noise level changes."""
    with model.concept_streams(["red"]) as streams:
        double = streams.blocks
    single = [block for block in range(model.n_blocks) if block not in double]
    layers: dict[str, dict[str, Any]] = {f"block {block}": {"blocks": [block]} for block in double}
    layers |= {f"block {block} (single)": {"blocks": [block]} for block in single}
    spaces = {
        f"{space}, softmax over {over}": {"space": space, "softmax_over": over}
        for space in SPACES
        for over in ("nothing", "concepts")
    }
    return {
        "layer": {**layers, "all double blocks": {"blocks": double}},
        "space": spaces,
        "attends to": {name: {"attend": streams} for name, streams in ATTENDED.items()},
    }
