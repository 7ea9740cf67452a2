"""The example extension, installed as a package of its own: its entry points are enough."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "examples" / "extension"

USE_THE_ANALYSIS = """
from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.registry import analyses, analysis

assert {"token_mass", "concept_attention", "attention_maps"} <= set(analyses())
model = HookedDiffusion.toy("shapes-unet")
prompt = "a red circle"
run = {"seed": 0, "num_inference_steps": 2}
circle = analysis("token_mass")(model, prompt, word="circle", **run)
whole = analysis("token_mass")(model, prompt, word=prompt, **run)
assert len(circle.values) == 10
assert all((circle.values[b] < whole.values[b]).all() for b in whole.values)
assert all((whole.values[b] <= 1).all() for b in whole.values)
loaded = type(circle).load(circle.save("mass"))
assert all(loaded.values[block].equal(circle.values[block]) for block in circle.values)
assert len(circle.plot().data) == 1
"""

USE_THE_ARCHITECTURE = """
import torch
from diffusion_lens_example.own_transformer import OwnTransformer2DModel
from diffusion_lens.testing import check_architecture

torch.manual_seed(0)
transformer = OwnTransformer2DModel(
    in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=12,
    num_attention_heads=3, joint_attention_dim=20, axes_dims_rope=[4, 4, 4],
).eval()
image_ids = torch.zeros(24, 3)
image_ids[:, 1], image_ids[:, 2] = torch.arange(24) // 6, torch.arange(24) % 6
inputs = {
    "hidden_states": torch.randn(2, 24, 16),
    "encoder_hidden_states": torch.randn(2, 7, 20),
    "timestep": torch.full((2,), 500.0),
    "img_ids": image_ids,
    "txt_ids": torch.zeros(7, 3),
}
print(check_architecture(transformer, inputs, points="blocks.*.attn.hook_pattern"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path of which pip installed the extension."""
    folder = tmp_path_factory.mktemp("extension")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder)]
    subprocess.run([*command, str(EXTENSION)], check=True, capture_output=True)
    return folder


def run(script: str, installed: Path, folder: Path) -> str:
    before = f"import sys\nsys.path.insert(0, {str(installed)!r})\n"
    command = [sys.executable, "-c", before + script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_analysis_is_found_by_name_and_runs(installed: Path, tmp_path: Path) -> None:
    run(USE_THE_ANALYSIS, installed, tmp_path)


@pytest.mark.slow
def test_its_architecture_is_known_and_keeps_the_contract(installed: Path, tmp_path: Path) -> None:
    shown = run(USE_THE_ARCHITECTURE, installed, tmp_path)
    assert shown.startswith("contract of OwnTransformer2DModel")
