"""The command `describe`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusion_lens.cli import app
from diffusion_lens.errors import UnsupportedModelError

FLUX, SD = (str(Path(__file__).parent / "golden" / one / "pipeline") for one in ("flux", "sd"))

pytestmark = pytest.mark.filterwarnings("ignore")


def test_it_writes_a_draft_with_the_answers_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "flux.py"
    result = CliRunner().invoke(app, ["describe", FLUX, "--out", str(file)])
    assert result.exit_code == 0, result.output
    text = file.read_text(encoding="utf-8")
    assert "timestep_scale=1000.0," in text
    assert '"FluxTransformerBlock": forms.joint(' in text
    assert result.stderr.endswith(f"{text.count('todo(')} questions left to answer\n")
    with pytest.raises(UnsupportedModelError, match="this description is not finished"):
        exec(compile(text, str(file), "exec"), {})


def test_it_prints_the_draft_and_counts_the_steps_that_there_are() -> None:
    result = CliRunner().invoke(app, ["describe", SD])
    assert result.exit_code == 0, result.output
    assert '"BasicTransformerBlock": forms.crossed(("norm2", "norm3"))' in result.stdout
    assert 'branches=("uncond", "cond"),' in result.stdout


def test_a_pipeline_that_refuses_is_quoted() -> None:
    result = CliRunner().invoke(app, ["describe", FLUX, "--set", "max_sequence_length=600"])
    assert result.exit_code == 2
    assert (
        "could not be run briefly to see how it calls its FluxTransformer2DModel" in result.stderr
    )
