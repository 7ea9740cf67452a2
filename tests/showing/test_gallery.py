"""Images as markup: what pipelines give, videos, sizes, and texts that are no markup."""

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lens.showing.gallery import MOST, SIDE, gallery
from diffusion_lens.showing.pictures import of_pipeline

RED = Image.new("RGB", (16, 8), (255, 0, 0))


def shown(markup: str) -> list[Image.Image]:
    """The images of a page."""
    data = re.findall(r'src="data:image/\w+;base64,([^"]+)"', markup)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in data]


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)[None] / 255


@pytest.mark.parametrize(
    "given",
    [
        pytest.param([RED], id="pil"),
        pytest.param(RED, id="one pil"),
        pytest.param(as_array(RED), id="np"),
        pytest.param(torch.from_numpy(as_array(RED)).movedim(-1, 1), id="pt"),
        pytest.param(torch.from_numpy(as_array(RED)).movedim(-1, 1).bfloat16(), id="half"),
        pytest.param(list(torch.from_numpy(as_array(RED)).movedim(-1, 1)), id="list of pt"),
    ],
)
def test_an_image_of_any_output_type_is_shown(given: Any) -> None:
    markup = gallery(given, captions=["red"])
    assert markup is not None and "red</figcaption>" in markup
    (image,) = shown(markup)
    assert image.size == (16, 8)
    assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def video(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (16, 8), (10 * at, 0, 0)) for at in range(count)]


@pytest.mark.parametrize("form", ["pil", "np", "pt"])
def test_of_a_video_the_first_middle_and_last_frame_are_shown(form: str) -> None:
    frames: Any = [video(9)]
    if form != "pil":
        frames = np.stack([as_array(one)[0] for one in frames[0]])[None]
    if form == "pt":
        frames = torch.from_numpy(frames).movedim(-1, 2)
    markup = gallery(frames)
    assert markup is not None and "frames 0, 4, 8 of 9" in markup
    assert [one.convert("RGB").getpixel((0, 0)) for one in shown(markup)] == [
        (0, 0, 0),
        (40, 0, 0),
        (80, 0, 0),
    ]


def test_a_video_of_two_frames_shows_both_once() -> None:
    assert len(shown(gallery([video(2)]) or "")) == 2


def test_big_images_are_small_in_the_page() -> None:
    noise = np.random.default_rng(0).random((4, 1024, 768, 3))
    markup = gallery(noise) or ""
    assert {one.size for one in shown(markup)} == {(SIDE * 3 // 4, SIDE)}
    assert len(markup) < 300_000


def test_many_samples_are_cut_and_counted() -> None:
    markup = gallery([RED] * (MOST + 3)) or ""
    assert len(shown(markup)) == MOST and "and 3 more" in markup


def test_texts_are_no_markup_and_long_ones_are_cut() -> None:
    markup = gallery([RED], captions=["<script>" * 40], line="<b>") or ""
    assert "<script" not in markup and "<b>" not in markup and "…" in markup


@pytest.mark.parametrize("given", [None, [], "latent", np.zeros((2, 3)), [object()], [np.inf]])
def test_what_is_no_image_is_left_to_the_repr(given: Any) -> None:
    assert gallery(given) is None


def test_pixels_of_floats_are_rounded_not_cut() -> None:
    ((image,),) = of_pipeline(np.full((1, 2, 2, 3), 0.999))
    assert image.getpixel((0, 0)) == (255, 255, 255)
