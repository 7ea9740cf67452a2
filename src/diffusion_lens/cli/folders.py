"""What commands leave in their folder: images, tables, a saved result, a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from diffusion_lens.tables import write_table

if TYPE_CHECKING:
    from diffusion_lens.app.report_parts import Part

RESULT = "result"
REPORT = "report.html"
Pictures = Mapping[str, Iterable[Any]]
"""Pictures by the name of their files; see `save_images`."""


@dataclass(frozen=True)
class Finding:
    """The result of an analysis, as a command leaves it.

    Attributes:
        title: Of the report.
        result: What the analysis gave: it saves itself, and has `made_by` and `citation`.
        parts: Figures, texts and images of the report.
        rows: Of the table.
        pictures: To keep as files.
    """

    title: str
    result: Any
    parts: Sequence[Part] = ()
    rows: Sequence[dict[str, Any]] = ()
    pictures: Pictures = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write pictures, result, table and report, and say where they are."""
        from diffusion_lens.app.report import Report
        from diffusion_lens.app.report_parts import Code, Table

        for name, images in self.pictures.items():
            save_images(images, folder, name=name)
        self.result.save(folder / RESULT)
        report = Report(self.title)
        report.add("Figures", *self.parts)
        if self.rows:
            write_table(self.rows, folder / "table.csv")
            report.add("Table", Table(self.rows[:200]))
        made_by = json.dumps(self.result.made_by, indent=1, default=str, ensure_ascii=False)
        report.add("What made it", f"Cite: {self.result.citation}.", Code(made_by))
        page = report.write(folder / REPORT)
        typer.echo(f"{page}\nThe result is in {folder / RESULT}; `diffusion-lens cite {folder}`.")


@dataclass(frozen=True)
class Drawing:
    """Images and what made them, as a command leaves them.

    Attributes:
        made_by: What was run and how.
        pictures: To keep as files.
        title: Of a report; none is written without.
        citation: What the report says to cite.
    """

    made_by: Mapping[str, Any]
    pictures: Pictures
    title: str = ""
    citation: str = ""

    def write(self, folder: Path) -> None:
        """Write images, `run.json` and the report, and say where they are."""
        paths = [
            path
            for name, images in self.pictures.items()
            for path in save_images(images, folder, name=name)
        ]
        record = {**self.made_by, "images": [path.name for path in paths]}
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (folder / "run.json").write_text(text + "\n", encoding="utf-8")
        if not self.title:
            typer.echo(f"{', '.join(map(str, paths))}; what made it is in {folder / 'run.json'}")
            return
        from diffusion_lens.app.report import Report
        from diffusion_lens.app.report_parts import Code, Images

        captioned = [(one, name) for name, images in self.pictures.items() for one in images]
        images, captions = zip(*captioned, strict=True)
        report = Report(self.title)
        report.add("Images", Images(images, captions))
        report.add("What made it", f"Cite: {self.citation}.", Code(text))
        typer.echo(str(report.write(folder / REPORT)))


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
