"""What commands leave in their folder: images, tables, a saved result, a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from diffusion_lens.tables import write_table

if TYPE_CHECKING:
    from diffusion_lens.app.report_parts import Part

RESULT = "result"
REPORT = "report.html"


def opened(path: Path) -> Any:
    """The picture in a file, in colours, as viewers show it: turned, and with 16 bits as with 8."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # `convert` would cut everything above 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    return image.convert("RGB")


def save_images(images: Iterable[Any], folder: Path, *, name: str = "image") -> list[Path]:
    """Write pictures as `image.png`, or as `image_0.png`, `image_1.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [image for image in images if hasattr(image, "save")]
    names = [f"{name}.png"] if len(shown) == 1 else [f"{name}_{n}.png" for n in range(len(shown))]
    paths = [folder / one for one in names]
    for image, path in zip(shown, paths, strict=True):
        image.save(path)
    return paths


def save_result(
    folder: Path, result: Any, title: str, *parts: Part, rows: Sequence[dict[str, Any]] = ()
) -> None:
    """Write a result, its table and a report, and say where they are."""
    from diffusion_lens.app.report import Report
    from diffusion_lens.app.report_parts import Code, Table

    result.save(folder / RESULT)
    report = Report(title)
    report.add("Figures", *parts)
    if rows:
        write_table(rows, folder / "table.csv")
        report.add("Table", Table(rows[:200]))
    made_by = json.dumps(result.made_by, indent=1, default=str, ensure_ascii=False)
    report.add("What made it", f"Cite: {result.citation}.", Code(made_by))
    page = report.write(folder / REPORT)
    typer.echo(f"{page}\nThe result is in {folder / RESULT}; `diffusion-lens cite {folder}`.")
