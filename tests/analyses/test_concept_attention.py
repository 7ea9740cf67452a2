"""ConceptAttention maps: their axes and numbers, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses import ConceptMaps, concept_attention, concept_scores
from diffusion_lens.analyses.concept_attention import PRESETS, Preset
from diffusion_lens.errors import (
    ConceptError,
    HookNeverFiredError,
    ResultError,
    UnsupportedModelError,
)
from tests.pipelines import shared_pipe, short, traces

pytestmark = pytest.mark.filterwarnings("ignore:the image has .* was made for")  # tiny pipelines

CONCEPTS = ["cat", "glass table", "sky"]


def maps(family: str, **more: Any) -> ConceptMaps:
    settings = short(family)
    prompt = settings.pop("prompt")
    model = HookedDiffusion(shared_pipe(family))
    return concept_attention(model, prompt, **{"concepts": CONCEPTS, **settings, **more})


def photo(height: int, width: int, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def over_photo(family: str, image: Any, prompt: Any = "a cat", **more: Any) -> ConceptMaps:
    model = HookedDiffusion(shared_pipe(family))
    return concept_attention(model, prompt, **{"concepts": CONCEPTS, "image": image, **more})


def test_scores_of_a_case_worked_out_by_hand() -> None:
    concepts = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    image = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [1.0, 0.5]]])
    products = concept_scores(concepts, image, softmax_over="nothing")
    assert products.tolist() == [[[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]]]
    over_concepts = concept_scores(concepts, image)
    torch.testing.assert_close(over_concepts[0, :, 2], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(over_concepts.sum(1), torch.ones(1, 3))
    over_patches = concept_scores(concepts, image, softmax_over="patches")
    torch.testing.assert_close(over_patches.sum(2), torch.ones(1, 2))


@pytest.mark.parametrize("family", ["sd3", "sd35", "flux"])
class TestMaps:
    @pytest.mark.slow
    def test_weights_of_a_patch_sum_to_one(self, family: str) -> None:
        found = maps(family)
        assert found.axes == ("batch", "concept", "height", "width")
        assert found.maps.shape == (1, 3, 8, 8)
        torch.testing.assert_close(found.maps.sum(1), torch.ones(1, 8, 8))
        assert torch.equal(found.of("sky"), found.maps[:, 2])
        assert torch.equal(found.segment(), found.maps.argmax(1))

    @pytest.mark.slow
    def test_kept_steps_and_blocks_average_to_the_map(self, family: str) -> None:
        apart = maps(family, keep=["step", "block"], preset=Preset(last_blocks=2))
        assert apart.axes == ("batch", "step", "block", "concept", "height", "width")
        assert apart.maps.shape == (1, 2, 2, 3, 8, 8)
        assert (apart.steps, len(apart.blocks)) == ((0, 1), 2)
        whole = maps(family, preset=Preset(last_blocks=2))
        torch.testing.assert_close(apart.maps.mean((1, 2)), whole.maps)
        assert maps(family, keep=["block"], steps=1).maps.ndim == 5

    def test_the_generated_image_is_the_same_as_without(self, family: str) -> None:
        found = maps(family, output_type="np", steps=0)
        plain = HookedDiffusion(shared_pipe(family))(**{**short(family), "output_type": "np"})
        assert found.images is not None and found.steps == (0,)
        assert np.array_equal(np.stack(found.images), plain.images)

    @pytest.mark.slow
    def test_noise_samples_of_a_given_image_are_averaged(self, family: str) -> None:
        given = {"image": photo(64, 96), "noise_level": 0.7, "guidance_scale": 1.0}
        one = over_photo(family, **given)
        other = over_photo(family, **given, seed=1)
        both = over_photo(family, **given, num_samples=2)
        torch.testing.assert_close(both.maps, (one.maps + other.maps) / 2)
        assert not torch.allclose(one.maps, other.maps)

    def test_a_given_image_keeps_its_shape(self, family: str) -> None:
        patch = {"flux": 16, "sd3": 8, "sd35": 8}[family]
        found = over_photo(family, photo(64, 96))
        assert found.maps.shape == (1, 3, 64 // patch, 96 // patch)
        assert found.images is not None and found.images[0].size == (96, 64)
        assert (found.made_by["given_size"], found.made_by["size"]) == ([64, 96], [64, 96])

    @pytest.mark.slow
    def test_nothing_is_left_on_the_model(self, family: str) -> None:
        pipe = shared_pipe(family)
        before = traces(pipe)
        maps(family)
        assert traces(pipe) == before


def test_sides_that_patches_do_not_tile_are_rounded_down_and_said() -> None:
    said = r"resized from 70 x 100 to 64 x 96 pixels \(height x width\).* multiples of 16"
    with pytest.warns(UserWarning, match=said):
        found = over_photo("flux", photo(70, 100))
    assert found.maps.shape == (1, 3, 4, 6)
    assert (found.made_by["given_size"], found.made_by["size"]) == ([70, 100], [64, 96])


@pytest.mark.slow
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 96, 3), np.float32),
        torch.zeros(3, 64, 96),
        photo(128, 192),
    ],
    ids=["array", "tensor", "resized"],
)
def test_images_come_in_any_form(image: Any) -> None:
    assert over_photo("flux", image, height=64).maps.shape == (1, 3, 4, 6)
    assert over_photo("flux", image, width=96).maps.shape == (1, 3, 4, 6)


def test_a_batch_of_images_is_as_its_members() -> None:
    pair = [photo(64, 96), photo(64, 96, seed=1)]
    both = over_photo("flux", pair, ["a cat", "a dog"])
    assert both.images is not None and len(both.images) == 2
    alone = over_photo("flux", pair[1], "a dog")
    torch.testing.assert_close(both.maps[1:], alone.maps, atol=1e-5, rtol=1e-4)


def test_frames_of_a_video_are_kept_or_averaged() -> None:
    video = maps("cogvideox", output_type="pil")
    assert video.axes == ("batch", "concept", "frame", "height", "width")
    assert video.maps.shape == (1, 3, 3, 4, 4)
    assert video.segment().shape == (1, 3, 4, 4)
    assert video.images is not None and len(video.images[0]) == 9
    mean = maps("cogvideox", frames="mean")
    assert mean.axes == ("batch", "concept", "height", "width")
    torch.testing.assert_close(mean.maps, video.maps.mean(2))
    titles = [note.text for note in video.overlay("sky").layout.annotations]
    assert titles == ["image", "frame 0", "image", "frame 1", "image", "frame 2"]
    titles = [note.text.replace("<br>", " ") for note in video.plot().layout.annotations]
    first = ["image", "frame 0, cat", "frame 0, glass table", "frame 0, sky"]
    assert titles[:5] == [*first, "image"]


def test_figures_show_what_was_kept() -> None:
    found = maps("flux", keep=["step", "block"], blocks=[0, 2], output_type="pil")
    figure = found.overlay("sky", alpha=0.4)
    assert [note.text for note in figure.layout.annotations] == ["image", "block 0", "block 2"]
    assert "all concepts sum to 1" in figure.layout.title.text.replace("<br>", " ")
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert [frame.name for frame in figure.frames] == ["0", "1"]
    np.testing.assert_allclose(figure.frames[1].data[1].z, found.of("sky")[0, 1, 1], rtol=1e-5)
    figure = found.plot()
    assert [note.text for note in figure.layout.annotations] == ["image", *CONCEPTS]
    expected = found.maps.mean(2)[0, 0, 2]
    np.testing.assert_allclose(figure.frames[0].data[2].z, expected, rtol=1e-5)


def test_figures_without_images() -> None:
    found = maps("flux")
    with pytest.raises(ResultError, match=r"no images.* give image="):
        found.overlay("sky")
    figure = found.overlay("sky", image=photo(128, 128))
    np.testing.assert_allclose(figure.data[0].z, found.of("sky")[0], rtol=1e-5)
    assert len(found.plot(image=photo(128, 128)).data) == 1 + 3
    with pytest.raises(ResultError, match="2 images for a batch of 1"):
        found.overlay("sky", image=[photo(128, 128)] * 2)
    with pytest.raises(ResultError, match="sample 1 does not exist: there are 1"):
        found.plot(1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux", "cogvideox"])
def test_maps_survive_saving(family: str, tmp_path: Path) -> None:
    found = maps(family, keep=["block"], output_type="pil")
    again = ConceptMaps.load(found.save(tmp_path / "maps"))
    assert torch.equal(again.maps, found.maps)
    kept = ("axes", "concepts", "steps", "blocks", "made_by", "citation")
    assert all(getattr(again, name) == getattr(found, name) for name in kept)
    assert np.array_equal(np.array(again.images), np.array(found.images))
    assert again.overlay("sky").to_json() == found.overlay("sky").to_json()


@pytest.mark.parametrize("tokens", ["all", "first"])
def test_a_concept_is_the_mean_of_its_tokens(tokens: str) -> None:
    model = HookedDiffusion(shared_pipe("flux"))
    found = maps("flux", preset=Preset(tokens=tokens), blocks=[1], steps=0)
    length = short("flux")["max_sequence_length"]
    with model.concept_streams(CONCEPTS, max_sequence_length=length) as streams:
        names = ["blocks.1.attn.concept.hook_z", "blocks.1.attn.img.hook_z"]
        _, cache = model.run_with_cache(names_filter=names, steps=[0], **short("flux"))
    rows, image = (cache[name][0].flatten(2) for name in names)
    assert rows.shape[1] > len(CONCEPTS), "a phrase has several tokens"
    if tokens == "all":
        expected = concept_scores(streams.merge(rows), image).unflatten(-1, (8, 8))
        torch.testing.assert_close(found.maps, expected)
    else:
        assert not torch.allclose(found.of("glass table"), maps("flux").of("glass table"))


def test_concepts_are_padded_as_the_prompt_is() -> None:
    found = maps("flux", max_sequence_length=24)
    of_the_prompt = maps("flux", preset=Preset(max_sequence_length=24), max_sequence_length=24)
    assert torch.equal(found.maps, of_the_prompt.maps)
    defaults = maps("flux", preset=Preset(max_sequence_length=512), max_sequence_length=24)
    assert not torch.allclose(found.maps, defaults.maps)


def test_a_block_given_twice_counts_once() -> None:
    from_the_end = 1 - HookedDiffusion(shared_pipe("flux")).n_blocks
    found = maps("flux", blocks=[1, 1, from_the_end])
    assert found.blocks == (1,)
    assert torch.equal(found.maps, maps("flux", blocks=1).maps)


def test_one_axis_to_keep_needs_no_list() -> None:
    assert torch.equal(maps("flux", keep="step").maps, maps("flux", keep=["step"]).maps)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_a_block_without_the_vectors_of_a_space_is_left_out(family: str) -> None:
    every = maps(family).blocks
    found = maps(family, space="attn_out", keep="block")
    assert found.blocks == every[:-1]
    assert found.maps.shape[1] == len(every) - 1
    assert maps(family, preset="flux-diffusers").blocks == every[:-1]
    with pytest.raises(ConceptError, match=r"has no 'concept\.hook_attn_out'.* space='attn_out'"):
        maps(family, space="attn_out", blocks=every)


def test_queries_that_ask_nothing_have_no_space() -> None:
    with pytest.raises(ConceptError, match=r"has no 'attn\.concept\.hook_q' with attend=\(\)"):
        maps("flux", space="query-key", attend=())


def test_the_seed_of_a_run_is_that_of_the_noise() -> None:
    found = over_photo("flux", photo(64, 64), Run("a cat", seed=5))
    assert found.made_by["seeds"] == [5]
    assert torch.equal(found.maps, over_photo("flux", photo(64, 64), seed=5).maps)
    assert "seed=5" in over_photo("flux", photo(64, 64), seed=5).made_by["run"]


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("preset='papers' is none of .* Closest: 'paper'", {"preset": "papers"}),
        ("space='y' is none of", {"space": "y"}),
        ("softmax_over='concept' is none of", {"softmax_over": "concept"}),
        ("keep='steps' is none of .* Closest: 'step'", {"keep": ["steps"]}),
        ("frames='men' is none of .* Closest: 'mean'", {"frames": "men"}),
        (
            "image_vectors=\"concepts\" are .* got space='value'",
            {"preset": "sd3", "space": "value"},
        ),
        ("there are no maps of single steps", {"preset": "sd3", "keep": ["step"]}),
        ("belong to a given image", {"noise_level": 0.5}),
        ("belongs to generated images", {"image": photo(64, 64), "steps": [0]}),
        ("num_samples=0", {"image": photo(64, 64), "num_samples": 0}),
        ("seed=None", {"image": photo(64, 64), "seed": None}),
        ("latents= and image= exclude each other", {"image": photo(64, 64)}),
        ("'  ' is empty", {"concepts": ["cat", "  "]}),
        ("takes 48; shorten it", {"concepts": ["cat " * 600]}),
        ("no concepts were given", {"concepts": []}),
        ('over one concept is 1 at every .* softmax_over="patches"', {"concepts": "cat"}),
        ("over one concept is 1 at every place", {"concepts": ["cat"], "preset": "flux-release"}),
        ("block 7 has none", {"blocks": [7]}),
        ("branch='all' is none of", {"branch": "all"}),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)
def test_bad_input_is_refused(message: str, more: dict[str, Any]) -> None:
    with pytest.raises(ConceptError, match=message):
        maps("flux", **more)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("flux", {"softmax_over": "patches"}),
        ("flux", {"softmax_over": "nothing"}),
        ("cogvideox", {"preset": "cogvideox"}),  # its empty slots share the softmax
    ],
)
def test_a_lone_concept_has_a_map_where_it_is_not_1_everywhere(
    family: str, more: dict[str, Any]
) -> None:
    assert maps(family, concepts="cat", **more).maps.std() > 0


def test_a_map_that_does_not_exist() -> None:
    with pytest.raises(ConceptError, match=r"no map of 'skye'.* Closest: 'sky'"):
        maps("flux").of("skye")


def test_a_step_that_does_not_exist() -> None:
    with pytest.raises(HookNeverFiredError, match="step"):
        maps("flux", steps=[7])


def test_a_step_that_does_not_exist_among_others_that_do() -> None:
    with pytest.raises(HookNeverFiredError, match=r"ran 2 steps \(0 to 1\): steps 2, 7 never came"):
        maps("flux", steps=[0, 1, 2, 7])


def test_a_unet_is_told_which_analysis_to_use() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Use `analyses\.attention_maps`"):
        maps("sd")


def test_the_release_blanks_the_pooled_caption_of_a_given_image() -> None:
    release = PRESETS["flux-release"]
    found = over_photo("flux", photo(64, 64), preset=release)
    captioned = replace(release, blank_caption=False)
    assert not torch.allclose(
        found.maps, over_photo("flux", photo(64, 64), preset=captioned).maps, rtol=1e-4
    )
    model = HookedDiffusion(shared_pipe("flux"))
    with model.hooks([("hook_pooled_text_emb", lambda value, _hook: 0 * value)]):
        given = {"concepts": CONCEPTS, "image": photo(64, 64), "preset": captioned}
        torch.testing.assert_close(concept_attention(model, "a cat", **given).maps, found.maps)


def test_what_concepts_attend_to_changes_the_maps() -> None:
    found = maps("flux", attend="image", blocks=[1], steps=0)
    assert found.made_by["attend"] == ("image",)
    alone = maps("flux", attend=(), blocks=[1], steps=0)
    assert not torch.allclose(found.maps, alone.maps)
    again = maps("flux", concepts=["sky", "cat", "glass table"], attend=(), blocks=[1], steps=0)
    torch.testing.assert_close(again.of("cat"), alone.of("cat"))


def test_a_bare_denoiser_takes_no_image() -> None:
    model = HookedDiffusion(shared_pipe("flux").transformer)
    with pytest.raises(ConceptError, match="a bare denoiser encodes no image="):
        concept_attention(model, "", concepts=torch.zeros(1, 2, 32), image=photo(64, 64))


def test_the_frames_of_a_given_video_are_mapped() -> None:
    video = [photo(32, 48, seed=frame) for frame in range(9)]
    found = over_photo("cogvideox", video, noise_level=0.7, guidance_scale=1.0)
    assert found.maps.shape == (1, 3, 3, 4, 6)
    assert found.images is not None and len(found.images[0]) == 9
    assert found.images[0][4].size == (48, 32)


@pytest.mark.parametrize(
    ("message", "image"),
    [
        (r"8 x 8 pixels is too small .* multiples of 16", photo(8, 8)),
        (r"images of different sizes", [photo(64, 64), photo(64, 96)]),
        (r"got str\. Open a file with PIL", "cat.png"),
        (r"has 1 channels, .*convert\(\"RGB\"\)", photo(64, 64).convert("L")),
        (r"has 4 channels, .*convert\(\"RGB\"\)", photo(64, 64).convert("RGBA")),
        (r"image= has 2 where the captions are 1", [photo(64, 64), photo(64, 64)]),
    ],
    ids=["too small", "sizes", "path", "grey", "transparent", "number"],
)
def test_bad_images_are_refused(message: str, image: Any) -> None:
    with pytest.raises(ConceptError, match=message):
        over_photo("flux", image)
