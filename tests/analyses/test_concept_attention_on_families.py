"""Concepts on the tiny pipeline of every family: which rows they are, and the maps they make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import concept_attention
from diffusion_lens.analyses.concept_attention import PRESETS, Preset
from diffusion_lens.errors import ConceptError
from tests.test_families_pipelines import (
    FAMILIES,
    PROMPT,
    differing,
    embedded,
    mark,
    settings,
    shared,
)
from tests.tiny_pipelines import PIPELINES
from tests.tiny_pipelines.families import HEIGHT, WIDTH
from tests.tiny_videos.families import tiny_video

CONCEPTS = ["cat", "glass table", "background"]
WITHOUT = (
    "pixart",
    "pixart_sigma",
    "sana",
    "kandinsky5",
    "hidream",
    "ernie_image",
    "prx",
    "nucleus",
)
WITHOUT += ("bria_fibo", "ideogram4", "hunyuan_dit")
"""Families without concept streams; docs/families.md says why."""

JOINT = [one for one in FAMILIES if one.values[0] not in WITHOUT]

pytestmark = pytest.mark.filterwarnings("ignore")


def encoding(name: str) -> dict[str, Any]:
    """How a family's tiny pipeline encodes its prompts, as far as it has to be told."""
    known = ("text_encoder_out_layers", "max_sequence_length")
    return {key: value for key, value in PIPELINES[name].settings.items() if key in known}


@pytest.mark.parametrize("name", FAMILIES)
def test_those_without_concept_streams_are_described_so(name: str) -> None:
    assert (shared(name).spec.concepts is None) == (name in WITHOUT)


@pytest.mark.parametrize("name", JOINT)
def test_concepts_are_the_rows_of_a_prompt_of_their_own(name: str) -> None:
    given = encoding(name)
    length = given.pop("max_sequence_length", None)
    with shared(name).concept_streams(
        ["cat"], max_sequence_length=length, encoder_settings=given
    ) as streams:
        found = streams.given.embeddings[0]
    ids, rows = embedded(name, "cat")
    other, changed = embedded(name, "dog")
    causal = PIPELINES[name].causal
    first = differing(rows, changed)[0] if causal else differing(ids, other)[0]
    assert len(found) < len(rows)
    torch.testing.assert_close(found, rows[first : first + len(found)], rtol=1e-4, atol=1e-5)
    # Behind them nothing is the word's: the next token is the template's or the text's end.
    count = len(differing(ids, other))
    assert len(found) == count


def vectors(name: str, run: dict[str, Any], **streams: Any) -> tuple[Tensor, Tensor]:
    """Concepts' and image's z, axes step, block, batch, token, d, from a run of their own."""
    model, points = shared(name), ["concept.hook_z", "img.hook_z"]
    with model.concept_streams(CONCEPTS, **streams) as opened:
        names = [f"blocks.{block}.attn.{point}" for block in opened.blocks for point in points]
        _, cache = model.run_with_cache(PROMPT, names_filter=names, seed=0, **run)
        concepts = [
            opened.merge(cache[f"blocks.{block}.attn.concept.hook_z"].flatten(3), dim=2)
            for block in opened.blocks
        ]
    image = [cache[f"blocks.{block}.attn.img.hook_z"].flatten(3) for block in opened.blocks]
    return torch.stack(concepts, 1), torch.stack(image, 1)[..., : HEIGHT * WIDTH, :]


@pytest.mark.parametrize("name", JOINT)
def test_maps_are_the_mean_of_softmaxes_over_the_images_grid(name: str) -> None:
    model, run = shared(name), settings(name)
    plain = model(PROMPT, seed=0, **run)
    found = concept_attention(model, PROMPT, concepts=CONCEPTS, seed=0, **run)
    assert found.axes == ("batch", "concept", "height", "width")
    assert found.maps.shape == (1, 3, HEIGHT, WIDTH)
    assert plain.images is not None and found.images is not None
    shown = torch.as_tensor(found.images[0])
    assert torch.equal(shown, plain.images[0].movedim(-3, -1).float().cpu())
    given = encoding(name)
    length = given.pop("max_sequence_length", None)
    concepts, image = vectors(name, run, max_sequence_length=length, encoder_settings=given)
    scores = (concepts.double() @ image.double().mT).softmax(-2).mean((0, 1))
    torch.testing.assert_close(found.maps.flatten(2).double(), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_maps_of_a_video_have_its_frames() -> None:
    video = tiny_video("hunyuan_video")
    run = {**video.settings, **video.unguided, "num_inference_steps": 1}
    prompt = run.pop("prompt")
    found = concept_attention(HookedDiffusion(video.pipe), prompt, concepts=CONCEPTS, **run)
    assert found.axes == ("batch", "concept", "frame", "height", "width")
    assert found.maps.shape == (1, 3, *video.grid)
    torch.testing.assert_close(found.maps.sum(1), torch.ones(1, *video.grid))


@pytest.mark.slow
def test_the_preset_of_flux2_is_that_of_its_release() -> None:
    """Row 510 of each chat at position 510, products averaged, then a softmax of a thousandth."""
    pipe: Any = shared("flux2").pipe
    run = settings("flux2", max_sequence_length=512, num_inference_steps=8, output_type="latent")
    layers = run["text_encoder_out_layers"]
    found = concept_attention(
        shared("flux2"), PROMPT, concepts=CONCEPTS, preset="flux2", seed=0, **run
    )
    assert found.steps == (5, 6)  # of 8: the last 30 %, without the final one
    encoded = [
        pipe.encode_prompt(one, max_sequence_length=512, text_encoder_out_layers=layers)[0]
        for one in CONCEPTS
    ]
    rows = torch.cat([one[:, 510] for one in encoded])[None]
    model, blocks = shared("flux2"), found.blocks
    points = ["concept.hook_z", "img.hook_z"]
    with model.concept_streams(rows, position=510):
        names = [f"blocks.{block}.attn.{point}" for block in blocks for point in points]
        _, cache = model.run_with_cache(PROMPT, names_filter=names, seed=0, steps=[5, 6], **run)
    products = [
        cache[f"blocks.{block}.attn.concept.hook_z"].flatten(3).double()
        @ cache[f"blocks.{block}.attn.img.hook_z"].flatten(3).double().mT
        for block in blocks
    ]
    expected = (torch.stack(products).mean((0, 1)) / 1000).softmax(1)
    spread = found.maps.flatten(2).double() - 1 / 3
    assert float(spread.abs().max()) > 1e-6
    torch.testing.assert_close(spread, expected - 1 / 3, rtol=1e-3, atol=1e-7)
    sharper = Preset(**{**vars(PRESETS["flux2"]), "temperature": 1.0})
    given: dict[str, Any] = {"preset": sharper, "seed": 0, **run}
    sharp = concept_attention(model, PROMPT, concepts=CONCEPTS, **given)
    torch.testing.assert_close(
        sharp.maps.flatten(2).double(),
        torch.stack(products).mean((0, 1)).softmax(1),
        rtol=1e-3,
        atol=1e-4,
    )


def test_presets_that_leave_no_step_and_rows_that_are_not_there_are_refused() -> None:
    model, run = shared("flux2"), settings("flux2")
    with pytest.raises(ConceptError, match=r"first 70% of the steps and the last one.* left of 2"):
        concept_attention(model, PROMPT, concepts=CONCEPTS, preset="flux2", **run)
    row = Preset(tokens=200)
    with pytest.raises(ConceptError, match=r"tokens=200 names a row .* has 200 rows"):
        concept_attention(model, PROMPT, concepts=CONCEPTS, preset=row, **run)
    with pytest.raises(ConceptError, match="vectors_first= and scores_first= exclude each other"):
        Preset(vectors_first=True, scores_first=True)
    with pytest.raises(ConceptError, match=r"temperature=0 must be above 0"):
        Preset(temperature=0)


@pytest.mark.parametrize("name", [pytest.param(one, marks=mark(one)) for one in ("qwen_image",)])
def test_a_concept_that_is_cut_away_says_so(name: str) -> None:
    run = {**settings(name), "max_sequence_length": 8}
    with pytest.raises(ConceptError, match=r"tokens cannot be told: .* cut after"):
        concept_attention(shared(name), PROMPT, concepts=["a b c d e f g h i j", "cat"], **run)
