"""Settings go where their prompts go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.errors import ConceptError, RunError
from diffusion_lens.long_runs.batching import batches, part_of
from tests.pipelines import latents_of, shared_pipe, short

PROMPTS = ["a red cat", "two dogs", "a park"]
ROWS = torch.arange(3.0)[:, None].expand(3, 4)
PICTURES = [Image.new("RGB", (2, 2), shade) for shade in ("red", "green", "blue")]


def given(name: str, value: Any, *, size: int = 2, **more: Any) -> list[Any]:
    run = Run(PROMPTS, **{name: value}, **more)
    return [part.seed if name == "seed" else part.settings[name] for _, part in batches(run, size)]


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor | np.ndarray):
        return np.array_equal(np.asarray(found), np.asarray(expected))
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("negative_prompt", "blurry", [["blurry"] * 2, ["blurry"]]),
        ("negative_prompt", ["x", "y", "z"], [["x", "y"], ["z"]]),
        ("negative_prompt", ("x", "y", "z"), [["x", "y"], ["z"]]),
        ("negative_prompt", ["x"], [["x", "x"], ["x"]]),
        ("negative_prompt", None, [None, None]),
        ("prompt_2", "one", [["one"] * 2, ["one"]]),
        ("negative_prompt_3", ["x", "y", "z"], [["x", "y"], ["z"]]),
        ("negative_prompt_embeds", ROWS, [ROWS[:2], ROWS[2:]]),
        ("negative_prompt_embeds", ROWS[:1], [ROWS[[0, 0]], ROWS[:1]]),
        ("negative_pooled_prompt_embeds", ROWS, [ROWS[:2], ROWS[2:]]),
        ("negative_prompt_attention_mask", ROWS, [ROWS[:2], ROWS[2:]]),
        ("negative_prompt_embeds_mask", ROWS, [ROWS[:2], ROWS[2:]]),
        ("latents", ROWS, [ROWS[:2], ROWS[2:]]),
        ("generator", ["g0", "g1", "g2"], [["g0", "g1"], ["g2"]]),
        ("image", PICTURES, [PICTURES[:2], PICTURES[2:]]),
        ("image", PICTURES[0], [PICTURES[0]] * 2),
        ("mask_image", PICTURES[:1], [PICTURES[:1]] * 2),
        (
            "control_image",
            ROWS[0, :, None].expand(4, 2)[None],
            [ROWS[0, :, None].expand(4, 2)[None]] * 2,
        ),
        ("image", np.zeros((3, 1, 1, 3)), [np.zeros((2, 1, 1, 3)), np.zeros((1, 1, 1, 3))]),
        ("seed", (7, 8, 9), [(7, 8), (9,)]),
        ("seed", 7, [7, 7]),
        ("seed", None, [None, None]),
        ("timesteps", [999, 500, 1], [[999, 500, 1]] * 2),
        ("ip_adapter_image", PICTURES, [PICTURES] * 2),
        ("crops_coords_top_left", (0, 0), [(0, 0)] * 2),
        ("guidance_scale", 7.5, [7.5, 7.5]),
    ],
)
def test_what_belongs_to_a_prompt_goes_with_it(name: str, value: Any, expected: Any) -> None:
    found = given(name, value)
    assert len(found) == 2
    assert all(map(same, found, expected)), found


def test_latents_generators_and_seeds_may_be_one_for_each_image() -> None:
    rows = torch.arange(6.0)[:, None]
    twice = {"num_images_per_prompt": 2}
    assert all(map(same, given("latents", rows, **twice), [rows[:4], rows[4:]]))
    assert given("seed", range(6), **twice) == [(0, 1, 2, 3), (4, 5)]
    assert given("seed", range(3), **twice) == [(0, 1), (2,)]
    assert given("negative_prompt", ["x", "y", "z"], **twice) == [["x", "y"], ["z"]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("negative_prompt", ["x", "y"], r"negative_prompt= has 2 rows for 3 prompts; .*each"),
        ("negative_prompt_embeds", ROWS[:2], r"negative_prompt_embeds= has 2 rows for 3 prompts"),
        ("latents", ROWS[:1], r"latents= has 1 row for 3 prompts"),
        ("generator", ["g0"], r"generator= has 1 row for 3 prompts"),
        ("image", PICTURES[:2], r"image= has 2 rows for 3 prompts"),
        ("seed", (1, 2), r"seed= has 2 rows for 3 prompts"),
    ],
)
def test_what_does_not_pair_is_refused_before_anything_runs(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        batches(Run(PROMPTS, **{name: value}), 2)
    with pytest.raises(ConceptError, match=message):
        part_of(Run(PROMPTS, **{name: value}), [0], error=ConceptError)


def test_what_cannot_be_split_says_why() -> None:
    with pytest.raises(RunError, match=r"latents= has 3 rows for 6 images"):
        batches(Run(PROMPTS, latents=ROWS, num_images_per_prompt=2), 2)
    with pytest.raises(RunError, match="batch_size=0: give 1 or more"):
        batches(Run(PROMPTS), 0)
    with pytest.raises(RunError, match="prompts as words are needed"):
        batches(Run(prompt_embeds=ROWS), 2)


def test_a_batch_starts_where_it_is_told() -> None:
    assert [numbers for numbers, _ in batches(Run(PROMPTS), 2, start=1)] == [[1, 2]]
    assert not list(batches(Run(PROMPTS), 2, start=3))


def test_batches_make_the_images_of_the_whole_run() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    settings = {key: one for key, one in short("sd", steps=1).items() if key != "prompt"}
    settings["latents"] = torch.randn(3, *settings["latents"].shape[1:])
    whole = Run(PROMPTS, negative_prompt=["x", "a dog", "red"], **settings)
    together = latents_of(model(whole))
    apart = [latents_of(model(part)) for _, part in batches(whole, 2)]
    assert [len(one) for one in apart] == [2, 1]
    torch.testing.assert_close(torch.cat(apart), together, atol=1e-4, rtol=1e-4)
