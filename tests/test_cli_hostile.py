"""Calls of the command line that cannot succeed end in a message, without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusion_lens.cli import app
from diffusion_lens.tables import write_table

RUN = ["run", "toy:shapes-unet", "a red circle", "--num-inference-steps", "1"]
MAPS = ["attention-maps", "toy:shapes-unet", "a red circle", "--words", "circle"]


def refused(arguments: list[str], *said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    text = " ".join(result.output.split())
    assert "Traceback" not in text
    for one in said:
        assert one in text, text


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")


@pytest.mark.parametrize("name", ["nope", "cuda:99", "cpu:x", "", "meta:"])
def test_devices_that_are_not_here(name: str, tmp_path: Path) -> None:
    refused([*RUN, "--device", name, "--out", str(tmp_path / "out")], "cannot be used here")
    assert not (tmp_path / "out").exists()


def test_images_that_are_none(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture", encoding="utf-8")
    out = ["--out", str(tmp_path / "out")]
    refused([*MAPS, "--image", str(text), *out], "is no picture that can be read")
    refused([*MAPS, "--image", str(tmp_path), *out], "is a directory")
    refused([*MAPS, "--image", str(tmp_path / "none.png"), *out], "does not exist")


def test_folders_that_cannot_be_written_are_noticed_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    for out in (file, file / "below" / "it", Path("/dev/null/x")):
        refused([*RUN, "--out", str(out)], "results cannot be written to")
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "more",
    [
        ["--set", "height"],
        ["--set", "=3"],
        ["--set", "nonsense=3"],
        ["--cache", "blocks.*.nothing"],
        ["--cache", "**", "--branch", "conditional"],
        ["--cache", "**", "--reduce", "most"],
        ["--torch-dtype", "int8"],
        ["--seed", "one"],
        ["--num-inference-steps", "-1"],
    ],
)
def test_settings_that_do_not_exist(more: list[str], tmp_path: Path) -> None:
    refused([*RUN, *more, "--out", str(tmp_path / "out")])


def test_models_that_are_none(tmp_path: Path) -> None:
    for model in ("toy:nothing", str(tmp_path), "", "\0"):
        refused(["run", model, "a red circle", "--out", str(tmp_path / "out")])


def test_words_that_begin_like_formulas_are_text_in_tables(tmp_path: Path) -> None:
    rows = [{"word": "=1+1", "@share": -0.5}, {"word": "cat", "@share": 1}]
    path = write_table(rows, tmp_path / "new" / "table.csv")
    assert path.read_text(encoding="utf-8") == "word,'@share\n'=1+1,-0.5\ncat,1\n"
    assert write_table([], tmp_path / "empty.csv").read_text(encoding="utf-8").strip() == ""
