"""What a run gives says in one line what it is, and shows its images or videos."""

from typing import Any

import pytest

from diffusion_lens import HookedDiffusion
from tests.pipelines import fresh_pipe, golden, shared_pipe


def test_an_output_shows_an_image_for_each_sample() -> None:
    settings: Any = golden("sd").settings(num_inference_steps=1, num_images_per_prompt=2)
    settings.pop("latents", None)
    out = HookedDiffusion(shared_pipe("sd"))(**settings | {"output_type": "pil"})
    markup = out._repr_html_() or ""
    assert markup.count("<img ") == 2
    assert "seed 0</figcaption>" in markup and "seed 1</figcaption>" in markup
    said = repr(out)
    assert said.startswith("Output(") and "\n" not in said and ".report" in said


@pytest.mark.parametrize("form", ["np", "pt"])
def test_arrays_and_tensors_of_a_pipeline_are_shown(form: str) -> None:
    settings: Any = golden("sd").settings(num_inference_steps=1) | {"output_type": form}
    out = HookedDiffusion(shared_pipe("sd"))(**settings)
    assert (out._repr_html_() or "").count("<img ") == 1


def test_latents_are_left_to_the_line() -> None:
    settings: Any = golden("sd").settings(num_inference_steps=1) | {"output_type": "latent"}
    out = HookedDiffusion(shared_pipe("sd"))(**settings)
    assert out._repr_html_() is None and "latents (1, 4, 16, 16)" in repr(out)


@pytest.mark.parametrize("form", ["pil", "np", "pt"])
def test_of_a_video_first_middle_and_last_frame_are_shown(form: str) -> None:
    settings: Any = golden("cogvideox").settings(num_inference_steps=1) | {"output_type": form}
    out = HookedDiffusion(fresh_pipe("cogvideox"))(**settings)
    markup = out._repr_html_() or ""
    assert markup.count("<img ") == min(3, len(out.frames[0]))
    assert f"1 video of {len(out.frames[0])} frames" in repr(out)
