"""Image strips, video, token patterns, and figures as files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

import diffusion_lens.viz
from diffusion_lens.errors import FigureError

viz: Any = diffusion_lens.viz  # type checkers do not know the attributes of plotly's figures

IMAGES = [Image.new("RGB", (16, 8), (60 * n, 0, 0)) for n in range(4)]


def test_a_strip_shows_each_image_once_in_its_panel() -> None:
    figure = viz.image_strip(IMAGES, captions=["a", "b", "c", "d"], rows=2)
    assert [image.xref for image in figure.layout.images] == ["x", "x2", "x3", "x4"]
    assert len({image.source for image in figure.layout.images}) == 4
    assert [note.text for note in figure.layout.annotations] == ["a", "b", "c", "d"]
    assert len(figure._grid_ref) == 2


def test_big_images_are_made_smaller_and_tiny_ones_keep_their_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2000, 1000, 3), dtype=np.uint8)
    (image,) = viz.image_strip(noise).layout.images
    assert len(image.source) < 1_000_000
    assert (image.sizex, image.sizey) == (1000, 2000)


def test_frames_move_with_the_slider() -> None:
    figure = viz.frames(IMAGES, captions=list("abcd"))
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == list("abcd")
    sources = [frame.layout.images[0].source for frame in figure.frames]
    assert len(set(sources)) == 4
    assert slider.active == 2 and figure.layout.images[0].source == sources[2]  # the middle


def test_a_map_over_frames_has_one_colour_scale() -> None:
    flat = torch.zeros(2, 4, 4)
    flat[1] = 1.0
    first, second = (frame.layout.images[0].source for frame in viz.frames(flat).frames)
    assert first != second


def test_gif_repeats_every_frame(tmp_path: Path) -> None:
    path = viz.gif(IMAGES, tmp_path / "new" / "video", fps=10)
    assert path == tmp_path / "new" / "video.gif"
    with Image.open(path) as read:
        assert getattr(read, "n_frames", 1) == 4
        assert read.info["duration"] == 100
        assert read.info["loop"] == 0


def test_gif_of_a_map_is_coloured(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 1, 4).reshape(4, 1, 1).expand(4, 8, 8).clone()
    ramp[1, 0, 0] = float("nan")
    with Image.open(viz.gif(ramp, tmp_path / "map.gif")) as read:
        assert np.asarray(read.convert("RGB"))[0, 0].tolist() == [68, 1, 84]  # viridis begins here


def test_patterns_hold_every_text_as_data_and_are_not_masked() -> None:
    evil = "</script><script>alert(1)</script>"
    drawn = viz.token_patterns(["<s>", evil], torch.eye(2).repeat(3, 1, 1), heads=["a", "b", "c"])
    given = drawn.html.rsplit("CircuitsVis.AttentionHeads, ", 1)[1].removesuffix(")</script>")
    assert "<" not in given
    data = json.loads(given)
    assert data["tokens"] == ["<s>", evil]
    assert data["maskUpperTri"] is False
    assert np.shape(data["attention"]) == (3, 2, 2)
    assert len(re.findall("</script>", drawn.html)) == 1
    assert len(repr(drawn)) < 100


def test_patterns_show_themselves_in_a_frame(tmp_path: Path) -> None:
    drawn = viz.token_patterns(["a", "b"], torch.eye(2))
    shown = drawn._repr_html_()
    assert shown.count("<") == 2
    assert drawn.write(tmp_path / "page").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_holds_all_that_it_needs(tmp_path: Path) -> None:
    path = viz.write(viz.bars({"a": 1.0}), tmp_path / "new" / "bars.html")
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert len(page) > 1_000_000


def test_a_picture_without_its_programs_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_given: Any) -> None:
        raise ValueError("\nImage export requires the kaleido package.\npip install kaleido")

    monkeypatch.setattr(go.Figure, "write_image", fail)
    with pytest.raises(FigureError, match=r"requires the kaleido package\. .*diffusion-lens\[png"):
        viz.write(viz.bars({"a": 1.0}), tmp_path / "bars.png")


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        pytest.param(
            lambda: viz.image_strip(IMAGES, captions=["a"]), "captions has 1", id="captions"
        ),
        pytest.param(lambda: viz.image_strip(IMAGES, rows=5), "give 1 to 4", id="rows"),
        pytest.param(lambda: viz.frames([]), "no image is given", id="no frames"),
        pytest.param(lambda: viz.gif(IMAGES, "a.gif", fps=0), "not positive", id="fps"),
        pytest.param(
            lambda: viz.token_patterns(["a"], torch.eye(2)), "1 queries and 1 keys", id="tokens"
        ),
        pytest.param(
            lambda: viz.token_patterns(["a"] * 700, torch.eye(700)), "fewer heads", id="size"
        ),
        pytest.param(
            lambda: viz.token_patterns(["a"], torch.ones(2, 1, 1), heads=["b"]),
            "heads has 1",
            id="heads",
        ),
        pytest.param(
            lambda: viz.write(viz.bars({"a": 1.0}), "a.bmp"), "written as .html", id="ending"
        ),
    ],
)
def test_what_does_not_fit_is_refused(draw: Callable[[], Any], said: str) -> None:
    with pytest.raises(FigureError, match=said):
        draw()


def test_an_overlay_as_a_picture_blends_colours_into_the_image() -> None:
    image = Image.new("RGB", (16, 8), (200, 100, 0))
    drawn = np.asarray(viz.overlay_image(image, [[0.0, 1.0]], alpha=0.5))
    assert drawn.shape == (8, 16, 3)
    high = np.array((253, 231, 36))  # the end of viridis
    np.testing.assert_array_equal(drawn[0, 0], (200, 100, 0))  # low: the image
    np.testing.assert_allclose(drawn[0, -1], np.add(high, (200, 100, 0)) / 2, atol=1)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 2
    smooth = np.asarray(viz.overlay_image(image, [[0.0, 1.0]], upsample="bilinear"))
    assert len(np.unique(smooth.reshape(-1, 3), axis=0)) > 2
    assert viz.overlay_image(image, [[0.0, 1.0]], alpha=0.0).tobytes() == image.tobytes()
    absent = np.asarray(viz.overlay_image(image, [[float("nan"), 1.0]]))
    np.testing.assert_array_equal(absent[0, 0], (200, 100, 0))
    grey = np.asarray(viz.overlay_image(image, [[0.0, 1.0]], grey=True))[0, 0]
    assert len(set(grey.tolist())) == 1


def test_an_overlay_as_a_picture_refuses_unknown_smoothing() -> None:
    with pytest.raises(FigureError, match="is none of"):
        viz.overlay_image(IMAGES[0], [[1.0]], upsample="bicubic")
