"""The commands `edit` and `excite`."""

from pathlib import Path

import pytest
from PIL import Image

from diffusion_lens.analyses import EditedImages, ExcitedImages
from tests.test_cli import FAST, MMDIT, PIPELINE, UNET, is_page, refused, table, works

RED, BLUE = "a red circle", "a blue circle"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["p2p", "fpe", "masactrl", "pnp", "sdedit"])
def test_edit_writes_images_a_result_and_a_report(method: str, tmp_path: Path) -> None:
    more = {"masactrl": ["--blocks", "5:10", "--set", "num_inference_steps=6"]}.get(method, FAST)
    works("edit", UNET, RED, BLUE, "--method", method, "--out", str(tmp_path), *more)
    result = EditedImages.load(tmp_path / "result")
    assert result.targets == (BLUE,)
    assert (tmp_path / "image_1.png").is_file()
    assert [row["prompt"] for row in table(tmp_path / "table.csv")] == [RED, BLUE]
    assert is_page(tmp_path / "report.html")


@pytest.mark.slow
def test_edit_takes_a_given_image(tmp_path: Path) -> None:
    picture = tmp_path / "given.png"
    Image.new("RGB", (32, 32), (200, 30, 40)).save(picture)
    shared = ("edit", UNET, RED, BLUE, "--image", str(picture), *FAST)
    said = works(*shared, "--method", "fpe", "--out", str(tmp_path / "fpe"))
    assert "Inversion(" in said
    works(*shared, "--method", "sdedit", "--out", str(tmp_path / "sdedit"))
    with Image.open(tmp_path / "sdedit" / "image_0.png") as back:
        assert back.getpixel((3, 3)) == (200, 30, 40)


def test_edit_of_a_transformer_by_its_vital_blocks(tmp_path: Path) -> None:
    given = ("edit", MMDIT, RED, BLUE, "--method", "stable-flow", *FAST)
    works(*given, "--blocks", "0", "--out", str(tmp_path))
    assert EditedImages.load(tmp_path / "result").method == "stable_flow"
    assert "needs --blocks" in refused(*given, "--out", str(tmp_path))


def test_edit_says_what_is_wrong() -> None:
    assert "'sdxl' is none of p2p" in refused("edit", UNET, RED, BLUE, "--method", "sdxl")
    assert "Give edit='refine'" in refused("edit", UNET, RED, "a large blue circle", *FAST)
    weights = ("edit", UNET, RED, RED, "--edit", "reweight", *FAST)
    assert "needs reweight=" in refused(*weights)
    assert "'red' is not of the form WORD=FACTOR" in refused(*weights, "--reweight", "red")
    assert "'green' is not in the prompt" in refused(*weights, "--reweight", "green=2")
    hrv = refused("edit", UNET, RED, BLUE, "--method", "p2p-hrv")
    assert "needs --relevance" in hrv


def test_excite_writes_both_images_and_the_losses(tmp_path: Path) -> None:
    more = ("--words", "cat", "--step-size", "1", "--no-refine", "--out", str(tmp_path))
    works("excite", PIPELINE, "a red cat", *more, *FAST)
    assert len(table(tmp_path / "table.csv")) == 3
    assert ExcitedImages.load(tmp_path / "result").words["cat"]
    assert (tmp_path / "plain.png").is_file()
    assert (tmp_path / "excited.png").is_file()
    said = refused("excite", PIPELINE, "a red cat", "--words", "dog", *FAST)
    assert "'dog' is not in the prompt" in said
