"""What commands leave in their folder: images, tables, a saved result, a report."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from diffusion_lens.tables import write_table

if TYPE_CHECKING:
    from diffusion_lens.app.report_parts import Part

TOP = 20
"""Rows of a table that a report shows."""
LINE = 88
"""Characters of a line of settings."""
WORD = r"\w+"
HOOK = 160
"""Characters of a hook that a report shows."""
LONGEST = 60
"""Characters of a word in a file's name."""
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
        by: The column whose largest values come first in the report; empty for the rows' order.
        pictures: To keep as files.
        captions: Of those that the report shows, by their names.
    """

    title: str
    result: Any
    parts: Sequence[Part] = ()
    rows: Sequence[dict[str, Any]] = ()
    by: str = ""
    pictures: Pictures = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write pictures, result, table and report, and say where they are."""
        from diffusion_lens.app.report import Report
        from diffusion_lens.app.report_parts import Images, Table

        for name, images in self.pictures.items():
            save_images(images, folder, name=name)
        self.result.save(folder / RESULT)
        report = Report(self.title)
        shown = [
            (image, caption)
            for name, caption in self.captions.items()
            for image in self.pictures.get(name, ())
        ]
        if shown:
            images, captions = zip(*shown, strict=True)
            report.add("Images", Images(images, captions))
        report.add("Figures", *self.parts)
        if self.rows:
            write_table(self.rows, folder / "table.csv")
            first = sorted(self.rows, key=lambda row: -row[self.by]) if self.by else self.rows
            report.add("Table", *_told(len(first)), Table(first[:TOP]))
        report.add(
            "What made it", f"Cite: {self.result.citation}.", provenance(self.result.made_by)
        )
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
        from diffusion_lens.app.report_parts import Images

        captioned = [(one, name) for name, images in self.pictures.items() for one in images]
        images, captions = zip(*captioned, strict=True)
        report = Report(self.title)
        report.add("Images", Images(images, captions))
        report.add("What made it", f"Cite: {self.citation}.", provenance(record))
        typer.echo(str(report.write(folder / REPORT)))


def _told(rows: int) -> list[str]:
    """What a report says of rows that it leaves out."""
    return [f"The first {TOP} of {rows} rows; all are in table.csv."] if rows > TOP else []


def provenance(made_by: Mapping[str, Any]) -> Part:
    """What made a result, folded; hooks alike in several blocks are one line.

    The file beside the report has all of it.
    """
    from diffusion_lens.app.report_parts import Folded

    about = dict(made_by)
    for name in ("hooks", "sites"):
        if name in about:
            about[name] = _alike(about[name])
    return Folded("Settings and versions", lined(about))


def _alike(texts: Iterable[Any]) -> list[str]:
    """Texts of hooks, shortened, with each block's number left out and how many are alike."""
    short = [re.sub(r"^Site\.parse\('(.*?)'\)", r"\1", str(one)) for one in texts]
    alike = Counter(re.sub(r"\bblocks\.\d+\.", "blocks.*.", one) for one in short)
    return [
        (text if len(text) <= HOOK else f"{text[:HOOK]} …") + (f" ({times} blocks)" * (times > 1))
        for text, times in alike.items()
    ]


def lined(value: Any, *, before: int = 0) -> str:
    """JSON with what is short on one line.

    Args:
        value: Made of dicts, lists, texts and numbers.
        before: How far it is indented.
    """
    flat = json.dumps(value, default=str, ensure_ascii=False)
    nested = isinstance(value, dict | list | tuple) and value
    if not nested or len(flat) + before <= LINE:
        return flat
    pairs = value.items() if isinstance(value, dict) else (("", one) for one in value)
    inner = [
        " " * (before + 2)
        + (f"{json.dumps(str(name), ensure_ascii=False)}: " if isinstance(value, dict) else "")
        + lined(one, before=before + 2)
        for name, one in pairs
    ]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([first, ",\n".join(inner), " " * before + last])


def opened(path: Path) -> Any:
    """The picture in a file, in colours, as viewers show it: turned, and with 16 bits as with 8."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # `convert` would cut everything above 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    return image.convert("RGB")


def named(kind: str, texts: Sequence[str], images: Sequence[Any]) -> dict[str, list[Any]]:
    """Pictures by what they show: `word_circle`, `concept_blue-square`.

    Args:
        kind: What the names begin with.
        texts: A word, phrase or concept for each picture; what files cannot be called is left out.
        images: The pictures.
    """
    found: dict[str, list[Any]] = {}
    taken: set[str] = set()
    for text, image in zip(texts, images, strict=True):
        name = f"{kind}_{'-'.join(re.findall(WORD, text))[:LONGEST]}"
        others = (f"{name}_{number}" for number in count(2))
        free = next(one for one in chain([name], others) if one.casefold() not in taken)
        taken.add(free.casefold())  # some file systems hold capitals for small letters
        found[free] = [image]
    return found


def save_images(images: Iterable[Any], folder: Path, *, name: str = "image") -> list[Path]:
    """Write pictures as `image.png`, or as `image_0.png`, `image_1.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [image for image in images if hasattr(image, "save")]
    names = [f"{name}.png"] if len(shown) == 1 else [f"{name}_{n}.png" for n in range(len(shown))]
    paths = [folder / one for one in names]
    for image, path in zip(shown, paths, strict=True):
        image.save(path)
    return paths
