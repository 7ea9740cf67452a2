"""`@command`: what it adds to a function, and when it loads the model."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from diffusion_lens import HookedDiffusion
from diffusion_lens.cli.command import SHARED, Call, command
from diffusion_lens.cli.commands import COMMANDS, HRV
from diffusion_lens.cli.folders import Finding
from diffusion_lens.cli.options import Prompt, Seed
from diffusion_lens.errors import RunError

ROOT = Path(__file__).parents[1]


class Written:
    """What a command gives: it writes itself."""

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "text").write_text(self.text, encoding="utf-8")


def settings_of(model: HookedDiffusion, prompt: str, **settings: Any) -> str:
    return f"{prompt} by {model.name}: {sorted(settings)}"


@command()
def tell(call: Call, prompt: Prompt, refuse: bool = False, seed: Seed = 0) -> Written:
    """Tell what a run is called with."""
    if refuse:
        raise RunError("refused before the model is loaded")
    return Written(call.run(settings_of, prompt, seed=seed))


@command(shared=("device",))
def quiet(call: Call) -> None:
    """Do nothing, without a folder."""


@command()
def fails(call: Call) -> None:
    """Call what fails at the settings."""
    call.run(lambda _model, **_settings: int("no number"))


def invoke(function: Any, *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(function)
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments))


def test_a_function_of_a_call_takes_a_model_and_the_shared_options(tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ("--num-inference-steps", "2", "--guidance-scale", "3", "--set", "eta=0.5")
    result = invoke(tell, "toy:shapes-unet", "a cat", *more, "--out", str(out))
    assert result.exit_code == 0, result.output
    told = (out / "text").read_text(encoding="utf-8")
    assert told.startswith("a cat by ")
    for name in ("num_inference_steps", "guidance_scale", "eta", "seed"):
        assert name in told
    shown = invoke(tell, "--help").output
    assert all(f"--{name.replace('_', '-')}" in shown for name in SHARED if name != "setting")
    assert "diffusion_lens_tell" in shown


def test_only_the_shared_options_that_are_named_are_taken() -> None:
    assert invoke(quiet, "toy:shapes-unet").exit_code == 0
    shown = invoke(quiet, "--help").output
    assert "--device" in shown
    assert "--out" not in shown


def test_the_model_is_loaded_when_it_is_first_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: object, **_more: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(HookedDiffusion, "from_pretrained", load)
    result = invoke(tell, "toy:shapes-unet", "a cat", "--refuse")
    assert (result.exit_code, result.stderr) == (2, "refused before the model is loaded\n")
    assert "a model was loaded" in invoke(tell, "toy:shapes-unet", "a cat").stderr


def test_settings_at_which_a_run_fails_end_in_a_message() -> None:
    result = invoke(fails, "toy:shapes-unet")
    assert result.exit_code == 2
    assert "refuses these settings: invalid literal for int()" in result.stderr


def test_every_command_is_a_row_of_the_documentation() -> None:
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    for name in (*COMMANDS, *(f"hrv {one}" for one in HRV)):
        assert f"| `{name.replace('_', '-')}" in page, name


def test_the_recipe_of_the_documentation_makes_a_command(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    recipe = page.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(recipe, found)
    arguments = ("toy:shapes-unet", "a cat", "--num-inference-steps", "1", "--out", str(tmp_path))
    result = invoke(found["head_patterns"], *arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").is_file()
    assert found["Finding"] is Finding
