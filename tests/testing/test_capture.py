"""Arguments of a denoiser call, taken from a pipeline."""

import pytest
import torch

from diffusion_lens.errors import RunError
from diffusion_lens.testing import capture_inputs, check_architecture
from tests.pipelines import fresh_pipe, golden


@pytest.mark.slow
def test_captured_arguments_make_the_call_again_and_keep_the_contract() -> None:
    pipe = fresh_pipe("sd3")
    denoiser, inputs = capture_inputs(pipe, **golden("sd3").settings())
    assert denoiser is pipe.transformer
    assert {"hidden_states", "encoder_hidden_states", "timestep"} <= set(inputs)
    assert not denoiser._forward_pre_hooks
    assert check_architecture(denoiser, inputs, points="blocks.0.attn.*.hook_v").ok


def test_a_pipeline_that_never_calls_its_denoiser_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = fresh_pipe("sd3")
    monkeypatch.setattr(type(pipe), "__call__", lambda self, **_call: torch.zeros(1))
    with pytest.raises(RunError, match="finished without calling its SD3Transformer2DModel"):
        capture_inputs(pipe, prompt="a cat")
