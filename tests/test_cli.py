"""The command line: what it prints, what it writes, and how it says no."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from diffusion_lens import ActivationCache, toys
from diffusion_lens.cli import app

PIPELINE = str(Path(__file__).parent / "golden" / "sd" / "pipeline")
PATTERNS = "blocks.0.cross_attn.hook_pattern"
FAST = ["--num-inference-steps", "2"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """What a refused command says, on the error stream and nowhere else."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


def test_help_lists_the_commands_without_importing_torch() -> None:
    script = (
        "import sys\nfrom diffusion_lens.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert all(name in shown for name in ("demo", "hooks", "run", "cite"))


def test_hooks_prints_the_table_of_the_names_that_match() -> None:
    result = call("hooks", PIPELINE, "blocks.0.cross_attn.*")
    assert result.exit_code == 0
    assert PATTERNS in result.stdout
    assert "batch head query key" in result.stdout
    assert "blocks.1." not in result.stdout


def test_hooks_names_the_closest_of_a_mistyped_name() -> None:
    assert f"Closest: {PATTERNS}" in refused("hooks", PIPELINE, f"{PATTERNS[:-1]}x")


def test_run_writes_an_image_and_what_made_it(tmp_path: Path) -> None:
    result = call("run", PIPELINE, "a cat", "--out", str(tmp_path), "--seed", "3", *FAST)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["seeds"] == [3]
    assert record["images"] == ["image.png"]
    assert "num_inference_steps=2" in record["run"]
    assert not (tmp_path / "cache").exists()


def test_run_keeps_the_hook_points_of_its_sites(tmp_path: Path) -> None:
    site = f"{PATTERNS}[head=1,step=1]"
    sites = ["--cache", site, "--cache", "hook_noise_pred"]
    result = call("run", PIPELINE, "a cat", "--out", str(tmp_path), *sites, *FAST)
    assert result.exit_code == 0, result.stderr
    cache = ActivationCache.load(tmp_path / "cache")
    assert set(cache) == {"hook_noise_pred", PATTERNS}
    assert cache[PATTERNS].shape[:3] == (1, 1, 1)  # one step, one prompt, one head
    assert cache.branches == ["cond"]


def test_run_passes_any_argument_of_the_pipeline_on(tmp_path: Path) -> None:
    more = ["--set", "num_images_per_prompt=2", "--set", "negative_prompt=a dog"]
    result = call("run", PIPELINE, "a cat", "--out", str(tmp_path), *more, *FAST)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["images"] == ["image_0.png", "image_1.png"]
    assert "negative_prompt='a dog'" in record["run"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cache", f"{PATTERNS}[heads=1]"], "unknown selector 'heads'"),
        (["--cache", f"{PATTERNS}[head=99]"], "head 99 was asked for"),
        (["--cache", f"{PATTERNS}[step=7]"], "never fired"),
        (["--set", "height"], "is not of the form NAME=VALUE"),
        (
            ["--set", "height=13", "--set", "width=16"],
            "StableDiffusionPipeline refuses these settings",
        ),
        (["--torch-dtype", "int8"], "give float32, bfloat16 or float16"),
    ],
)
def test_run_refuses_with_the_message_alone(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    message = refused("run", PIPELINE, "a cat", "--out", str(tmp_path), *FAST, *arguments)
    assert said in message


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = refused("hooks", str(tmp_path / "nothing"))
    assert message.startswith("cannot load ")
    assert "a Hub id, a folder" in message


def test_an_unknown_toy_is_refused() -> None:
    assert "no toy model is called 'shapes'" in refused("hooks", "toy:shapes")


def test_demo_saves_an_image_and_says_where(tmp_path: Path) -> None:
    result = call("demo", "--out", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "blocks.4.cross_attn.hook_pattern" in result.stdout
    assert str(tmp_path / "image.png") in result.stdout
    assert (tmp_path / "image.png").exists()


def test_demo_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "names", lambda: ())
    result = call("demo")
    assert result.exit_code == 1
    assert "needs the toy model 'shapes-unet'" in result.stderr


def test_cite_prints_bibtex_with_the_version() -> None:
    from diffusion_lens import __version__

    shown = call("cite").stdout
    assert shown.startswith("@software{diffusion_lens,")
    assert f"version = {{{__version__}}}" in shown
    assert shown.count("{") == shown.count("}")
