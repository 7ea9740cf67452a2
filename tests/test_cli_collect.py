"""`diffusion-lens collect`: what Python's `collect` writes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diffusion_lens import HookedDiffusion
from diffusion_lens.activations import ActivationStore, collect
from diffusion_lens.cli import app

SITE = "blocks.2.img.hook_resid_post"


def call(tmp_path: Path, *options: str, text: str = "a red circle\n\na blue square\n"):
    (tmp_path / "prompts.txt").write_text(text)
    given = ["collect", "toy:shapes-unet", str(tmp_path / "prompts.txt"), "--sites", SITE]
    given += ["--num-inference-steps", "2", "--out", str(tmp_path / "store"), *options]
    return CliRunner().invoke(app, given)


def test_it_is_what_python_writes(tmp_path: Path) -> None:
    options = ["--tokens", "4", "--seeds", "3,5", "--dtype", "float16", "--steps", "1"]
    options += ["--guidance-scale", "2"]
    result = call(tmp_path, *options)
    assert result.exit_code == 0, result.output
    assert "ActivationStore(16 rows, 1 site, 2 prompts" in result.output
    made = ActivationStore.open(tmp_path / "store").rows()
    given: dict[str, Any] = {"tokens": 4, "seeds": [3, 5], "dtype": torch.float16, "steps": [1]}
    model = HookedDiffusion.toy("shapes-unet")
    given |= {"num_inference_steps": 2, "guidance_scale": 2.0}
    prompts = ["a red circle", "a blue square"]
    again = collect(model, prompts, sites=SITE, out=tmp_path / "python", **given)
    assert torch.equal(made.values, again.rows().values)
    assert made.values.dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "1"], "--shard '1': give the number of this process"),
        (["--shard", "2/2"], "shard=(2, 2)"),
        (["--tokens", "many"], "tokens='many'"),
        (["--dtype", "float8"], "'float8' is none of"),
        (["--sites", "blocks.0.nothing"], "no hook point matches"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    result = call(tmp_path, *options)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    result = call(tmp_path, text="\n \n")
    assert result.exit_code != 0
    assert "holds no prompt" in result.output
