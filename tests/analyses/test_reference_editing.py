"""Injected activations: identities, what is injected where, memory, every method's errors."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site, toys
from diffusion_lens.analyses import (
    EditedImages,
    VitalBlocks,
    free_prompt_editing,
    invert,
    masactrl,
    plug_and_play,
    sdedit,
    stable_flow,
    vital_blocks,
)
from diffusion_lens.analyses.masactrl import late_blocks
from diffusion_lens.analyses.plug_and_play import decoder_blocks
from diffusion_lens.analyses.stable_flow import pixel_distance
from diffusion_lens.errors import ArgumentError, ResultError, RunError, UnsupportedModelError
from diffusion_lens.interventions import Reference, bypass_block
from tests.pipelines import fresh_pipe, latents_of, shared_pipe, short, traces

SOURCE = "a red cat on the glass table"
TARGET = "two blue dogs"
Method = Callable[..., EditedImages]
METHODS: dict[str, tuple[Method, dict[str, Any]]] = {
    "fpe": (free_prompt_editing, {"self_replace": 1}),
    "masactrl": (masactrl, {"first_step": 1, "blocks": [0, 1, 2]}),
    "pnp": (plug_and_play, {"features": 1, "attention": 1}),
    "stable_flow": (stable_flow, {"blocks": [0, 2]}),
}
CASES = [
    ("sd", "fpe"),
    ("sd", "masactrl"),
    ("sd", "pnp"),
    ("sdxl", "pnp"),
    ("sd3", "fpe"),
    ("sd3", "masactrl"),
    ("sd3", "stable_flow"),
    ("flux", "fpe"),
    ("flux", "stable_flow"),
]


@functools.cache
def model(name: str = "sd") -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(name))


def settings(name: str = "sd", **more: Any) -> dict[str, Any]:
    given = {key: value for key, value in short(name).items() if key != "prompt"}
    return {**given, **more}


def edit(name: str, method: str, *prompts: Any, **more: Any) -> EditedImages:
    call, options = METHODS[method]
    return call(model(name), *prompts, **{**options, **settings(name), **more})


def rows(given: dict[str, Any], count: int) -> dict[str, Any]:
    latents: Tensor = given["latents"]
    return {**given, "latents": latents.expand(count, *latents.shape[1:]).clone()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_run_injected_into_itself_changes_no_bit(name: str, method: str) -> None:
    plain = latents_of(model(name)(SOURCE, **settings(name)))
    recorded = edit(name, method, SOURCE, SOURCE, record=True)
    assert torch.equal(recorded.latents[0], plain[0])
    assert torch.equal(recorded.latents[1], plain[0])
    both = latents_of(model(name)([SOURCE, SOURCE], **rows(settings(name), 2)))
    assert torch.equal(edit(name, method, SOURCE, SOURCE).latents, both)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), CASES)
def test_beside_and_recorded_are_the_same_edit(name: str, method: str, tmp_path: Path) -> None:
    beside = edit(name, method, SOURCE, TARGET)
    memory = edit(name, method, SOURCE, TARGET, record=True)
    folder = edit(name, method, SOURCE, TARGET, record=tmp_path / "kept")
    assert torch.equal(memory.latents, folder.latents)
    torch.testing.assert_close(beside.latents, memory.latents, atol=2e-3, rtol=2e-3)
    plain = latents_of(model(name)([SOURCE, TARGET], **rows(settings(name), 2)))
    assert torch.equal(beside.latents[0], plain[0])
    assert not torch.allclose(beside.latents[1], plain[1], atol=5e-3)


@pytest.mark.parametrize("record", [False, True])
def test_one_negative_prompt_serves_all_rows(record: bool) -> None:
    several = edit("sd", "fpe", SOURCE, TARGET, record=record, negative_prompt=["a dog"] * 2)
    found = edit("sd", "fpe", SOURCE, TARGET, record=record, negative_prompt="a dog")
    assert torch.equal(found.latents, several.latents)


def test_a_recorded_source_and_its_edits_keep_texts_of_their_own() -> None:
    own = {"negative_prompt": ["a dog", "a cat"], "negative_prompt_2": ["two dogs", "two cats"]}
    options = {"first_step": 1, "blocks": [0, 1, 2], **settings("sdxl"), **own}
    both, apart = (
        masactrl(model("sdxl"), SOURCE, TARGET, record=record, **options).latents
        for record in (False, True)
    )
    torch.testing.assert_close(both, apart, atol=2e-3, rtol=2e-3)


def test_what_is_injected_and_where() -> None:
    """MasaCtrl: keys and values of the named blocks from a step on, in both branches, no others."""
    _, cache = _cached(lambda: edit("sd", "masactrl", SOURCE, TARGET))
    for block, name, branch, step in itertools.product(
        range(model().n_blocks), "qkv", ("uncond", "cond"), (1, 2)
    ):
        value = cache.branch(branch).at(step=step)[f"blocks.{block}.attn.img.hook_{name}"]
        same = torch.equal(value[0], value[1])
        assert same == (block in (0, 1, 2) and name != "q"), (block, name, branch, step)
    first = cache.branch("cond").at(step=0)["blocks.2.attn.img.hook_k"]
    assert not torch.equal(first[0], first[1])


def _cached(run: Callable[[], Any]) -> tuple[Any, Any]:
    names = [f"blocks.*.attn.img.hook_{one}" for one in "qkv"]
    with model("sd").caching(names, branch="all") as cache:
        return run(), cache


def test_blocks_by_default() -> None:
    assert list(late_blocks(model())) == [5, 6]  # the last three eighths of 7
    modules = {point.block: point.module for point in model().points.values()}
    chosen = decoder_blocks(model())
    assert all(modules[block].startswith("up_blocks.") for block in chosen)
    ups = [block for block, module in modules.items() if module.startswith("up_blocks.")]
    assert set(chosen) == {block for block in ups if block is not None} - {min(filter(None, ups))}


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_spooled_injection_holds_as_much_at_ten_and_at_fifty_steps(tmp_path: Path) -> None:
    most: dict[int, int] = {}
    for steps in (10, 50):

        def look(
            _pipe: Any, _step: int, _time: Any, _tensors: dict, steps: int = steps
        ) -> dict[str, Any]:
            gc.collect()
            most[steps] = max(most.get(steps, 0), live_bytes())
            return {}

        sites = {"blocks": [0], "record": tmp_path / f"{steps}", "first_step": 0}
        given = settings(num_inference_steps=steps, guidance_scale=1.0)
        masactrl(model(), SOURCE, TARGET, **sites, callback_on_step_end=look, **given)
    assert most[50] - most[10] == 40 * 8  # the schedule's own timesteps


def live_bytes() -> int:
    """Bytes of every tensor that is alive, each storage once."""
    held = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) in (Tensor, torch.nn.Parameter)
    }
    return sum(held.values())


def test_a_reference_says_what_it_lacks(tmp_path: Path) -> None:
    reference = Reference(tmp_path)
    site = Site("blocks.0.attn.img.hook_k", steps=[0], branch="cond")
    model().run_with_hooks(SOURCE, fwd_hooks=reference.recording([site]), **settings())
    assert "1 tensors in" in repr(reference)
    elsewhere = site.with_(steps=[1])
    with pytest.raises(RunError, match=r"branch 'cond' at step 1, .* at the steps \[0\]"):
        model().run_with_hooks(SOURCE, fwd_hooks=reference.injecting([elsewhere]), **settings())
    smaller = settings()["latents"][..., :8].clone()
    with pytest.raises(RunError, match="both must make images of one size"):
        model().run_with_hooks(
            SOURCE,
            fwd_hooks=reference.injecting([site]),
            **settings(latents=smaller, width=32),
        )
    with pytest.raises(RunError, match="is not empty; record a reference into a new folder"):
        Reference(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RunError, match=r"folder='.*file' cannot be made"):
        Reference(file)


# -- vital blocks -----------------------------------------------------------------------------


def test_vital_blocks_are_those_whose_absence_moves_the_image(tmp_path: Path) -> None:
    given = settings("flux", output_type="pil")
    found = vital_blocks(model("flux"), SOURCE, **given)
    assert found.distances.shape == (model("flux").n_blocks, 1)
    plain = model("flux")(SOURCE, **given)
    without = model("flux").run_with_hooks(
        SOURCE, fwd_hooks=bypass_block(model("flux"), 3), **given
    )
    expected = np.abs(np.asarray(plain.image, float) - np.asarray(without.image, float)).mean()
    assert float(found.distances[3, 0]) == pytest.approx(expected / 255, rel=1e-5)
    assert found.top(2)[0] == int(found.distances.mean(1).argmax())
    found.plot()
    assert torch.equal(VitalBlocks.load(found.save(tmp_path)).distances, found.distances)
    used = stable_flow(model("flux"), SOURCE, TARGET, blocks=found, **settings("flux"))
    assert used.made_by["sites"] == [
        f"blocks.{found.top(1)[0]}.attn.img.hook_{one}" for one in "kv"
    ]
    with pytest.raises(ResultError, match=r"top\(9\): there are 5 blocks"):
        found.top(9)
    with pytest.raises(
        ResultError, match=r"distance=.* gave 1 for 1 image; .* one number for each"
    ):
        vital_blocks(model("flux"), SOURCE, distance=lambda *_: 1, **given)  # type: ignore[arg-type]


def test_pixels_by_hand() -> None:
    black, grey = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), (51, 51, 51))
    assert pixel_distance([black, grey], [grey, grey]) == pytest.approx([0.2, 0.0])


# -- images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> HookedDiffusion:
    return HookedDiffusion.toy("shapes-unet")


@pytest.fixture(scope="module")
def flow() -> HookedDiffusion:
    return HookedDiffusion.toy("shapes-mmdit")


PROMPT = "a red circle on a white background"


@pytest.mark.slow
def test_more_steps_bring_an_image_back_better(toy: HookedDiffusion) -> None:
    kept = toys.call_defaults(toy, steps=4)
    image = toy(PROMPT, seed=1, **kept).image
    few, many = (invert(toy, image, PROMPT, num_inference_steps=steps) for steps in (4, 20))
    assert many.latent_error < few.latent_error
    assert many.image_error < few.image_error
    assert many.autoencoder_error <= many.image_error


@pytest.mark.slow
def test_more_rounds_undo_a_flow_better(flow: HookedDiffusion, tmp_path: Path) -> None:
    kept = toys.call_defaults(flow, steps=12)
    noise = {"true_cfg_scale": 1.0}
    made = flow(PROMPT, seed=1, **{**kept, **noise, "output_type": "pil"})
    found = [
        invert(flow, made.image, PROMPT, rounds=rounds, **{**kept, **noise}) for rounds in (1, 12)
    ]
    assert found[1].latent_error < 0.2 * found[0].latent_error
    found[1].plot()
    back = type(found[1]).load(found[1].save(tmp_path))
    assert back.latent_error == found[1].latent_error
    assert "autoencoder" in repr(back)


@pytest.mark.slow
def test_an_inverted_image_is_edited_from_its_noise(toy: HookedDiffusion) -> None:
    image = toy(PROMPT, seed=1, **toys.call_defaults(toy, steps=8)).image
    found = invert(toy, image, PROMPT, num_inference_steps=8)
    given = {**found.settings, "guidance_scale": 1.0}
    result = free_prompt_editing(toy, PROMPT, PROMPT, latents=found.latents, **given)
    # The batch of two rounds otherwise than the round trip's batch of one.
    assert pixel_distance([result.source_image], [found.reconstruction])[0] < 0.01


@pytest.mark.slow
def test_less_noise_stays_nearer_to_the_image(toy: HookedDiffusion, flow: HookedDiffusion) -> None:
    for one in (toy, flow):
        kept = toys.call_defaults(one, steps=8)
        image = one(PROMPT, seed=1, **kept).image
        little, much = (
            sdedit(one, image, "a blue square", strength=strength, seed=2, **kept)
            for strength in (0.25, 1.0)
        )
        assert little.source_image is image
        near, far = (pixel_distance([image], [some.image])[0] for some in (little, much))
        assert near < far
        kept_prompt = sdedit(one, image, PROMPT, strength=0.125, seed=2, **kept)
        assert pixel_distance([image], [kept_prompt.image])[0] < 0.02
        drawn = sdedit(one, PROMPT, ["a blue square", PROMPT], strength=0.5, seed=1, **kept)
        assert pixel_distance([drawn.source_image], [image])[0] < 0.01
        assert len(drawn.target_images) == 2
        assert len(drawn.latents) == 3


# -- errors -----------------------------------------------------------------------------------


def test_what_cannot_be_injected_says_why() -> None:
    before = traces(shared_pipe("sd"))
    with pytest.raises(RunError, match="one source prompt, got"):
        edit("sd", "fpe", [SOURCE, SOURCE], TARGET)
    with pytest.raises(RunError, match="one source prompt, the run has"):
        edit("sd", "masactrl", Run([SOURCE, SOURCE]), TARGET)
    with pytest.raises(RunError, match=r"blocks 7, 9 were asked for, .* has the blocks 0 to 6"):
        edit("sd", "masactrl", SOURCE, TARGET, blocks=[1, 7, 9])
    with pytest.raises(RunError, match="first_step=9 is none of the 2 steps"):
        edit("sd", "masactrl", SOURCE, TARGET, first_step=9)
    with pytest.raises(RunError, match=r"self_replace=0.1 covers none of the steps"):
        edit("sd", "fpe", SOURCE, TARGET, self_replace=0.1)
    with pytest.raises(RunError, match=r"self_replace=\(1, 0\) is no range of steps"):
        edit("sd", "fpe", SOURCE, TARGET, self_replace=(1, 0))
    with pytest.raises(
        ArgumentError, match=r"^plug_and_play\(features=…\) .* from 0 to 1, got 1.5"
    ):
        edit("sd", "pnp", SOURCE, TARGET, features=1.5)
    with pytest.raises(RunError, match=r"resnet='up_blocks.9' is no ResNet of .* its decoder has"):
        edit("sd", "pnp", SOURCE, TARGET, resnet="up_blocks.9")
    with pytest.raises(UnsupportedModelError, match="takes features of a U-Net's ResNets"):
        edit("flux", "pnp", SOURCE, TARGET)
    with pytest.raises(
        UnsupportedModelError, match=r"share their attention; in .* `masactrl` does"
    ):
        edit("sd", "stable_flow", SOURCE, TARGET)
    assert traces(shared_pipe("sd")) == before


@pytest.mark.parametrize("method", ["invert", "sdedit"])
@pytest.mark.parametrize("name", ["toy", "flow"])
def test_a_given_image_keeps_its_size_as_far_as_patches_allow(
    method: str, name: str, request: pytest.FixtureRequest
) -> None:
    model, odd = request.getfixturevalue(name), Image.new("RGB", (27, 18))
    size = {"toy": (24, 16), "flow": (26, 18)}[name]
    with pytest.warns(UserWarning, match="the image is resized from 18 x 27 to"):
        if method == "invert":
            found = invert(model, odd, PROMPT, num_inference_steps=2)
            assert found.image.size == found.reconstruction.size == size
        else:
            edited = sdedit(model, odd, PROMPT, num_inference_steps=4)
            assert [one.size for one in edited.images or ()] == [size, size]


def test_images_and_arguments_that_do_not_fit_are_refused(
    toy: HookedDiffusion, flow: HookedDiffusion
) -> None:
    with pytest.raises(RunError, match=r"of 4 x 40 pixels is too small .* multiples of 8; give"):
        invert(toy, Image.new("RGB", (40, 4)), PROMPT)
    with pytest.raises(RunError, match=r"of 1 x 40 pixels is too small .* multiples of 2; give"):
        sdedit(flow, Image.new("RGB", (40, 1)), PROMPT)
    fits = Image.new("RGB", (32, 32))
    with pytest.raises(RunError, match="one prompt, got"):
        invert(toy, fits, Run([PROMPT, PROMPT]))
    with pytest.raises(ArgumentError, match=r"^invert\(rounds=…\) takes int from 1 .*, got 0"):
        invert(toy, fits, PROMPT, rounds=0)
    with pytest.raises(
        UnsupportedModelError, match=r"has PNDMScheduler; .* DDIMScheduler.from_con"
    ):
        invert(model(), Image.new("RGB", (64, 64)), PROMPT)
    with pytest.raises(RunError, match="image= has 1 channels, AutoencoderKL takes 3"):
        sdedit(model(), Image.new("L", (64, 64)), PROMPT, num_inference_steps=2)
    with pytest.raises(RunError, match="this run made latents or a video"):
        vital_blocks(model("flux"), PROMPT, **settings("flux", num_inference_steps=1))
    with pytest.raises(ArgumentError, match=r"^sdedit\(strength=…\) .* above 0 to 1, got 0"):
        sdedit(toy, fits, PROMPT, strength=0)
    with pytest.raises(ArgumentError, match=r"^invert\(image=…\) takes Image, got a numpy float64"):
        invert(toy, np.zeros((32, 32, 3)), PROMPT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        (
            "DDIMScheduler",
            {"timestep_spacing": "linspace"},
            UnsupportedModelError,
            r"has timestep_spacing='linspace'; set",
        ),
        (
            "DDIMScheduler",
            {"prediction_type": "sample", "set_alpha_to_one": True},
            RunError,
            r"its noise has values that are no numbers .*needs set_alpha_to_one=False",
        ),
        (
            "DDIMScheduler",
            {
                "timestep_spacing": "trailing",
                "rescale_betas_zero_snr": True,
                "clip_sample": False,
            },
            RunError,
            r"drawn from its noise has values that are no .*needs prediction_type='v_prediction'",
        ),
        (
            "FlowMatchEulerDiscreteScheduler",
            {"stochastic_sampling": True},
            UnsupportedModelError,
            r"stochastic_sampling=True, whose steps draw noise",
        ),
    ],
)
def test_steps_that_cannot_be_undone_are_refused(
    name: str, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    flow = name.startswith("Flow")
    pipe = fresh_pipe("sd3" if flow else "sd")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changed)
    with pytest.raises(error, match=message):
        invert(HookedDiffusion(pipe), Image.new("RGB", (64, 64)), PROMPT, num_inference_steps=2)
