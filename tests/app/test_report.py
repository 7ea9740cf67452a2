"""The report page: one file, every text escaped, one copy of the figures' program."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusion_lens import viz
from diffusion_lens.app.report import Report
from diffusion_lens.app.report_parts import Code, Folded, Images, Number, Numbers, Table
from diffusion_lens.errors import FigureError

EVIL = "</script><img src=x onerror=\"alert('1')\">&amp;"


class Page(HTMLParser):
    """Tags with their attributes, and texts outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.shown: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.shown.append(data)

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full_page() -> str:
    report = Report(EVIL, lead=[Numbers([Number(EVIL, EVIL)])])
    figure = viz.bars({EVIL: 1.0}, title=EVIL)
    image = Image.new("RGB", (4, 4))
    report.add(EVIL, EVIL, figure, figure, Table([{EVIL: EVIL, "b": 0.12345, "c": 7}]))
    report.add("more", Images([image], [EVIL]), Code(EVIL), viz.token_patterns([EVIL], [[1.0]]))
    return report.html()


def test_texts_of_users_are_shown_as_they_are_written(full_page: str) -> None:
    page = Page(full_page)
    assert not [image for image in page.of("img") if "onerror" in image]
    texts = [text for text in page.shown if text.strip() == EVIL]
    assert len(texts) == 10  # title, headings, number, paragraph, cells, caption, code
    assert page.of("img")[0]["alt"] == EVIL


def test_the_page_loads_nothing_and_holds_one_program(full_page: str) -> None:
    parsed = Page(full_page)
    for tag in ("script", "link", "img", "iframe", "a"):
        for attributes in parsed.of(tag):
            for where in ("src", "href"):
                assert str(attributes.get(where, "data:")).startswith("data:")
    assert "@import" not in full_page
    assert len(re.findall(r"plotly\.js v\d", full_page)) == 1


def test_every_figure_has_a_place_of_its_own(full_page: str) -> None:
    places = [d["id"] for d in Page(full_page).of("div") if d.get("class") == "plotly-graph-div"]
    assert len(places) == len(set(places)) == 2


def test_a_page_without_figures_is_small() -> None:
    report = Report("words")
    report.add("section", "text")
    assert len(report.html()) < 5000


def test_figures_wait_for_the_reader() -> None:
    report = Report("video")
    report.add("frames", viz.frames([Image.new("RGB", (4, 4))] * 2))
    assert "Plotly.animate(" not in report.html().split("</script>", 1)[1]


def test_tables_show_numbers_shortly() -> None:
    shown = Table([{"a": 0.123456, "b": 12, "c": True}], digits=2).html()
    assert '<td class="number">0.12</td><td class="number">12</td><td>True</td>' in shown
    assert '<th class="number">a</th><th class="number">b</th><th>c</th>' in shown
    assert Table([]).html() == "<p>(no rows)</p>"


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    small, large = (Images([Image.new("RGB", (side, side))]).html() for side in (32, 512))
    assert '<figure class="small">' in small
    assert "<figure><img" in large


def test_what_is_folded_is_escaped() -> None:
    shown = Folded(EVIL, EVIL).html()
    assert "<script" not in shown
    assert "<img" not in shown
    assert shown.startswith("<details><summary>")


def test_captions_must_fit_their_images() -> None:
    with pytest.raises(FigureError, match="1 caption for 2 images"):
        Images([Image.new("RGB", (4, 4))] * 2, ["a"]).html()


def test_writing_into_a_folder_or_to_a_file(tmp_path: Path) -> None:
    report = Report("title")
    assert report.write(tmp_path / "folder") == tmp_path / "folder" / "report.html"
    assert report.write(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype")
