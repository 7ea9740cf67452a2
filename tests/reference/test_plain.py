"""Wrapped pipelines give what the unmodified ones gave elsewhere (data in tests/golden)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_lens import HookedDiffusion
from tests.pipelines import PLAIN, golden, latents_of, shared_pipe

# The tolerances of the README beside each golden folder; every rtol is 1e-3.
LATENTS = {
    ("sd", "plain"): 1e-3,
    ("sd", "plain_cfg1"): 2e-4,
    ("sdxl", "plain"): 2e-3,
    ("sd3", "plain"): 1e-4,
    ("sd3", "plain_cfg"): 1e-3,
    ("sd35", "plain"): 1e-4,
    ("sd35", "plain_cfg"): 1e-4,
    ("flux", "plain"): 1e-4,
    ("cogvideox", "plain"): 2e-4,
}
GREY_LEVELS = 2


@pytest.mark.parametrize(("family", "case"), PLAIN)
class TestPlain:
    def test_final_latents_agree(self, family: str, case: str) -> None:
        given = golden(family)
        model = HookedDiffusion(shared_pipe(family))
        out = model(output_type="latent", **given.settings(case))
        expected = given.expected[f"{case}.latents"]
        torch.testing.assert_close(latents_of(out), expected, atol=LATENTS[family, case], rtol=1e-3)

    def test_images_agree(self, family: str, case: str) -> None:
        given = golden(family)
        out = HookedDiffusion(shared_pipe(family))(output_type="np", **given.settings(case))
        made = out.images if out.frames is None else out.frames
        found = np.round(255 * made[0]).astype(int)
        expected = given.expected[f"{case}.image"].numpy().astype(int)
        assert np.abs(found - expected).max() <= GREY_LEVELS

    def test_first_prediction_agrees_branch_by_branch(self, family: str, case: str) -> None:
        given = golden(family)
        model = HookedDiffusion(shared_pipe(family))
        _, cache = model.run_with_cache(
            names_filter="hook_noise_pred",
            steps=0,
            branch="all",
            output_type="latent",
            **given.settings(case),
        )
        expected = given.expected[f"{case}.model_output_0"]
        names = ["cond"] if expected.shape[0] == 1 else ["uncond", "cond"]
        assert sorted(cache.branches) == sorted(names)
        found = torch.cat([cache.branch(name)["hook_noise_pred"][0] for name in names])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "sd35", "flux", "cogvideox"])
def test_latents_of_every_step_agree(family: str) -> None:
    given = golden(family)
    model = HookedDiffusion(shared_pipe(family))
    out, cache = model.run_with_cache(
        names_filter="hook_latents", output_type="latent", **given.settings()
    )
    expected = given.expected["plain.step_latents"]
    assert cache.steps == list(range(len(expected)))
    # The denoiser gets the latents that the step before left, scaled where sigmas are.
    after = cache["hook_latents"][1:]
    if family == "sdxl":
        sigmas = shared_pipe(family).scheduler.sigmas[1:-1].reshape(-1, 1, 1, 1, 1)
        after = after * (sigmas**2 + 1) ** 0.5
    found = torch.cat([after, latents_of(out)[None]])
    torch.testing.assert_close(found, expected, atol=LATENTS[family, "plain"], rtol=1e-3)


def test_prompt_embeddings_agree() -> None:
    given = golden("sd")
    model = HookedDiffusion(shared_pipe("sd"))
    _, cache = model.run_with_cache(
        names_filter="hook_text_emb", branch="all", steps=0, **given.settings()
    )
    found = torch.cat([cache.uncond["hook_text_emb"][0], cache.cond["hook_text_emb"][0]])
    expected = given.expected["plain.prompt_embeds"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_steps_of_pndm_are_one_more_than_asked_for() -> None:
    given = golden("sd")
    model = HookedDiffusion(shared_pipe("sd"))
    _, cache = model.run_with_cache(names_filter="hook_latents", **given.settings())
    assert len(cache.steps) == given.cases["plain"]["num_inference_steps"] + 1
    assert len(set(cache.timesteps)) == len(cache.steps) - 1
