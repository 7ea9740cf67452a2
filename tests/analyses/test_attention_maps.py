"""Attention maps: their axes and numbers, streaming, selective aggregation, what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, viz
from diffusion_lens.analyses import AttentionMaps, attention_maps
from diffusion_lens.analyses.attention_maps.collecting import Aggregation, PatternSums
from diffusion_lens.analyses.attention_maps.foreign import ForeignKeys, appended
from diffusion_lens.analyses.attention_maps.selecting import tokens_of
from diffusion_lens.errors import ArgumentError, ResultError, RunError, SiteError, WordError
from diffusion_lens.hook_points.point import HookPoint
from tests.pipelines import shared_pipe, short, traces

PROMPT = "a red cat on the glass table"
FAMILIES = ["sd", "sdxl", "sd3", "sd35", "flux"]


def maps(family: str, prompts: Any = PROMPT, **more: Any) -> AttentionMaps:
    settings = {key: value for key, value in short(family).items() if key != "prompt"}
    if not isinstance(prompts, str):
        settings.pop("latents")
    model = HookedDiffusion(shared_pipe(family))
    return attention_maps(model, prompts, **{**settings, **more})


def patterns(family: str, prompts: Any = PROMPT, **more: Any) -> tuple[HookedDiffusion, Any]:
    """Every text pattern of the same run, kept whole."""
    settings = {key: value for key, value in short(family).items() if key != "prompt"}
    if not isinstance(prompts, str):
        settings.pop("latents")
    model = HookedDiffusion(shared_pipe(family))
    _, cache = model.run_with_cache(
        prompts, names_filter=model.text_pattern_sites(), **{**settings, **more}
    )
    return model, cache


def at_size(pattern: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Patterns with axes step, head, query, key as maps with axes head, key, height, width."""
    summed = pattern.mean(0).mT.unflatten(-1, grid)
    return F.interpolate(summed, size=size, mode="bicubic", align_corners=False)


def grids(model: HookedDiffusion, cache: Any, latents: Any) -> dict[str, tuple]:
    """The grid of each pattern: latents halved as often as the pattern is coarse."""
    found = {}
    for name in cache:
        height, width = latents
        while height * width > cache[name].shape[3]:
            height, width = -(-height // 2), -(-width // 2)
        found[name] = (height, width)
    return found


@dataclass
class Grid:
    """An evaluation that knows its step and grid alone."""

    step: int
    shape: tuple[int, ...]

    def grid(self, level: int) -> tuple[int, ...]:
        return self.shape

    def timestep(self) -> float:
        return 0.0

    timestep_known = sigma = timestep

    def words(self, branch: str) -> dict[str, tuple[int, ...]]:
        return {}


def context(block: int, step: int, grid: tuple[int, ...], heads: int) -> HookContext:
    """What a hook is told of a pattern."""
    axes = ("batch", "head", "query", "key")
    name = f"blocks.{block}.attn.hook_pattern"
    point = HookPoint(name, axes, None, "", block=block)
    return HookContext(
        name,
        block,
        None,
        axes,
        step,
        "cond",
        heads=tuple(range(heads)),
        point=point,
        evaluation=Grid(step, grid),
    )


class TestSums:
    def filled(self, aggregation: Aggregation) -> tuple[PatternSums, Tensor, Tensor]:
        sums = PatternSums(aggregation)
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(2, 1, 3, 4, 5, dtype=torch.float64, generator=generator)
        fine = torch.rand(2, 1, 2, 16, 5, dtype=torch.float64, generator=generator)
        for step in (0, 1):
            sums(coarse[step], context(0, step, (2, 2), 3))
            sums(fine[step], context(1, step, (4, 4), 2))
        return sums, coarse, fine

    def test_one_map_is_the_mean_over_heads_of_all_blocks(self) -> None:
        sums, coarse, fine = self.filled(Aggregation(upsample="nearest"))
        big = coarse.mT.unflatten(-1, (2, 2)).repeat_interleave(2, -1).repeat_interleave(2, -2)
        everything = torch.cat([big, fine.mT.unflatten(-1, (4, 4))], 2)
        torch.testing.assert_close(sums.result(), everything.mean((0, 2)))
        assert len(sums.sums) == 2

    def test_clamping_each_head_is_not_clamping_their_mean(self) -> None:
        apart, coarse, fine = self.filled(Aggregation(apart=frozenset({0}), over_steps="sum"))
        each = F.interpolate(
            coarse.sum(0)[0].mT.unflatten(-1, (2, 2)), size=(4, 4), mode="bicubic"
        ).clamp(min=0)
        heads = torch.cat([each, fine.sum(0)[0].mT.unflatten(-1, (4, 4))])
        torch.testing.assert_close(apart.result()[0], heads.mean(0))
        together, *_ = self.filled(Aggregation(over_steps="sum"))
        assert together.sums[None, 0].value.shape == (1, 4, 5)
        assert apart.sums[None, 0].value.shape == (1, 3, 4, 5)

    def test_weights_weigh_heads(self) -> None:
        weights = {(0, 0): 1.0, (0, 1): 0.5, (0, 2): 2.0, (1, 0): 3.0, (1, 1): 0.25}
        aggregation = Aggregation(upsample="nearest", weights=weights)
        sums, coarse, fine = self.filled(aggregation)
        big = coarse.mT.unflatten(-1, (2, 2)).repeat_interleave(2, -1).repeat_interleave(2, -2)
        everything = torch.cat([big, fine.mT.unflatten(-1, (4, 4))], 2).mean(0)[0]
        factors = torch.tensor(list(weights.values()), dtype=torch.float64)
        expected = torch.einsum("h,h...->...", factors, everything) / factors.sum()
        torch.testing.assert_close(sums.result()[0], expected)
        apart, *_ = self.filled(
            Aggregation(upsample="nearest", weights=weights, apart=frozenset({0}))
        )
        torch.testing.assert_close(apart.result()[0], expected)

    def test_kept_axes_average_to_the_whole(self) -> None:
        whole, *_ = self.filled(Aggregation(upsample="nearest"))
        for keep, shape in (
            ({"step"}, (1, 2, 5, 4, 4)),
            ({"block"}, (1, 2, 5, 4, 4)),
            ({"head"}, (1, 5, 5, 4, 4)),
            ({"step", "head"}, (1, 2, 5, 5, 4, 4)),
        ):
            found = self.filled(Aggregation(upsample="nearest", keep=frozenset(keep)))[0].result()
            assert found.shape == shape
            if "block" not in keep:
                axes = tuple(range(1, found.ndim - 3))
                torch.testing.assert_close(found.mean(axes), whole.result())

    def test_frames_are_kept_apart(self) -> None:
        sums = PatternSums(Aggregation())
        value = torch.rand(1, 2, 3 * 2 * 2, 5)
        sums(value, context(0, 0, (3, 2, 2), 2))
        found = sums.result((4, 4))
        assert found.shape == (1, 5, 3, 4, 4)
        one = F.interpolate(
            value.mean(1).mT.unflatten(-1, (3, 2, 2))[:, :, 1], size=(4, 4), mode="bicubic"
        )
        torch.testing.assert_close(found[:, :, 1], one.clamp(min=0))

    def test_reference_images_behind_the_grid_are_left_out(self) -> None:
        sums = PatternSums(Aggregation())
        value = torch.rand(1, 2, 9, 5)
        sums(value, context(0, 0, (2, 2), 2))
        torch.testing.assert_close(sums.result(), value[:, :, :4].mean(1).mT.unflatten(-1, (2, 2)))

    def test_sums_do_not_grow_with_steps(self) -> None:
        def held(steps: int, aggregation: Aggregation) -> int:
            sums = PatternSums(aggregation)
            for step in range(steps):
                for block, grid in enumerate([(4, 4), (2, 2), (2, 2), (4, 4)]):
                    sums(torch.rand(1, 2, grid[0] ** 2, 5), context(block, step, grid, 2))
            return sum(one.value.untyped_storage().nbytes() for one in sums.sums.values())

        assert held(5, Aggregation()) == held(50, Aggregation()) == (16 + 4) * 5 * 4
        apart = Aggregation(apart=frozenset({1, 2}))
        assert held(5, apart) == held(50, apart) == (16 + 2 * 2 * 4) * 5 * 4


@pytest.mark.parametrize("family", FAMILIES)
class TestMaps:
    @pytest.mark.slow
    def test_maps_are_the_mean_of_the_patterns(self, family: str) -> None:
        model, cache = patterns(family)
        found = maps(family)
        places = grids(model, cache, found.maps.shape[-2:])
        size = max(places.values())
        assert found.axes == ("batch", "token", "height", "width")
        assert found.maps.shape[-2:] == size
        resized = [at_size(cache[name][:, 0], places[name], size) for name in cache]
        expected = torch.cat(resized).mean(0).clamp(min=0)
        torch.testing.assert_close(
            found.maps[0], expected[list(found.positions)], atol=1e-5, rtol=1e-4
        )

    @pytest.mark.slow
    def test_words_are_the_mean_of_their_tokens(self, family: str) -> None:
        model = HookedDiffusion(shared_pipe(family))
        prompt = "a cat and a red cat"
        every, one = maps(family, prompt), maps(family, prompt, words="cat")
        rows = [every.positions.index(at) for at in model.words(prompt, "cat")]
        torch.testing.assert_close(every.word("Cat"), every.maps[:, rows].mean(1))
        torch.testing.assert_close(one.word("cat"), every.word("cat"), atol=1e-5, rtol=1e-4)
        first, second = (every.word("cat", occurrence=n, sample=0) for n in (0, 1))
        assert not torch.allclose(first, second)
        torch.testing.assert_close((first + second) / 2, every.word("cat", sample=0))
        torch.testing.assert_close(every.word(every.positions[2]), every.maps[:, 2])
        with pytest.raises(WordError, match="'red' was not mapped"):
            one.word("red")

    @pytest.mark.slow
    def test_prompts_of_one_batch_need_not_be_worded_alike(self, family: str) -> None:
        prompts = ["a red cat", "the old and red table"]
        negative = [] if family == "flux" else [("negative_prompt", "")]
        found = maps(
            family, prompts, words=["red", "cat"], **{key: [one, one] for key, one in negative}
        )
        alone = [
            maps(family, Run(one), words="red", **dict(negative)).word("red", sample=0)
            for one in prompts
        ]
        torch.testing.assert_close(found.word("red"), torch.stack(alone), atol=1e-4, rtol=1e-3)
        assert found.word("cat", sample=0).shape == found.maps.shape[-2:]
        with pytest.raises(WordError, match=r"'cat' is not in the prompt .*sample 1; .*foreign="):
            found.word("cat")

    @pytest.mark.slow
    def test_sizes_need_not_be_square(self, family: str) -> None:
        model = HookedDiffusion(shared_pipe(family))
        scale = shared_pipe(family).vae_scale_factor
        size = {"height": 16 * scale, "width": 8 * scale}
        found = maps(family, Run(PROMPT), words="cat", **size)
        height, width = found.maps.shape[-2:]
        assert height == 2 * width
        _, cache = patterns(family, Run(PROMPT), **size)
        places = grids(model, cache, (height, width))
        rows = list(found.positions)
        resized = [
            at_size(cache[name][:, 0][..., rows], places[name], (height, width)) for name in cache
        ]
        expected = torch.cat(resized).mean(0).clamp(min=0)
        torch.testing.assert_close(found.maps[0], expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.slow
    def test_foreign_words_get_the_share_they_would_have(self, family: str) -> None:
        found = maps(family, words="cat", foreign=["dog", "glass table"], keep="head")
        assert found.labels[-1] == "glass table"
        assert found.maps.shape[found.axes.index("token")] == len(found.labels)
        assert found.word("dog").min() >= 0 and found.word("dog").max() < 1
        if family in ("sd", "sdxl"):  # words of concept streams see each other
            alone = maps(family, words=[], foreign="dog", keep="head")
            torch.testing.assert_close(alone.word("dog"), found.word("dog"))
        among = maps(family, words=[], foreign=["dog", "sky"], foreign_among="foreign")
        torch.testing.assert_close(among.maps.sum(1), torch.ones_like(among.maps[:, 0]))

    @pytest.mark.slow
    def test_images_are_those_of_plain_runs(self, family: str) -> None:
        pipe = shared_pipe(family)
        settings = {**short(family), "output_type": "pil"}
        plain = HookedDiffusion(pipe)(**settings)
        before = traces(pipe)  # after a first run, in which text encoders set up hooks of their own
        found = maps(family, settings["prompt"], foreign="dog", output_type="pil")
        assert traces(pipe) == before
        assert np.array_equal(np.array(found.images[0]), np.array(plain.images[0]))

    @pytest.mark.slow
    def test_a_given_image_is_noised_and_denoised_once(self, family: str) -> None:
        model = HookedDiffusion(shared_pipe(family))
        settings = short(family)
        scale = shared_pipe(family).vae_scale_factor
        size = {"height": 8 * scale, "width": 16 * scale}
        image = np.random.default_rng(0).random((size["height"], size["width"], 3))
        given = {
            "image": image.astype(np.float32),
            "words": "cat",
            "guidance_scale": settings["guidance_scale"],
            **size,
        }
        one = attention_maps(model, "a cat", noise_level=0.7, **given)
        other = attention_maps(model, "a cat", noise_level=0.7, seed=1, **given)
        both = attention_maps(model, "a cat", noise_level=0.7, num_samples=2, **given)
        assert not torch.allclose(one.maps, other.maps)
        torch.testing.assert_close(both.maps, (one.maps + other.maps) / 2)


def test_selected_heads_are_a_part_of_the_heads_kept_apart() -> None:
    every = maps("sdxl", words="cat", keep="head")
    pairs = [every.heads[at] for at in (0, 3, 9)]
    torch.testing.assert_close(
        maps("sdxl", words="cat", heads=pairs, clamp="each", size=(8, 8)).word("cat"),
        every.word("cat")[:, [0, 3, 9]].mean(1),
    )
    weights = dict(zip(pairs, (1.0, 3.0, 0.0), strict=True))
    torch.testing.assert_close(
        maps("sdxl", words="cat", heads=weights, clamp="each", size=(8, 8)).word("cat"),
        (every.word("cat")[:, 0] + 3 * every.word("cat")[:, 3]) / 4,
    )


def test_daam_leaves_the_bottleneck_out_unless_it_is_named() -> None:
    every, daam = maps("sd", words="cat"), maps("sd", words="cat", preset="daam")
    (middle,) = set(every.blocks) - set(daam.blocks)
    assert maps("sd", words="cat", preset="daam", blocks=[middle]).blocks == (middle,)
    pairs = [(middle, 0), (daam.blocks[0], 1)]
    assert maps("sd", words="cat", preset="daam", heads=pairs).heads == (pairs[1],)
    with pytest.raises(SiteError, match=r"selects nothing: the blocks .* are left out"):
        maps("sd", words="cat", preset="daam", heads=pairs[:1])


def test_foreign_shares_are_those_of_a_longer_softmax() -> None:
    scores = torch.randn(4, 7, dtype=torch.float64)
    owners = [slice(0, 2), slice(2, 3)]
    added = torch.randn(4, 3, dtype=torch.float64)
    found = appended(added, torch.logsumexp(scores, -1), owners)
    for columns in owners:
        longer = torch.cat([scores, added[:, columns]], -1).softmax(-1)[:, 7:]
        torch.testing.assert_close(found[:, columns], longer)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_foreign_keys_meet_the_queries_of_the_run(family: str) -> None:
    """Worked out again from cached queries and keys, with a softmax over the whole sequence."""
    model = HookedDiffusion(shared_pipe(family))
    attention = "cross_attn" if family == "sd" else "attn"
    settings = short(family, steps=1)
    prompt = settings.pop("prompt")
    found = attention_maps(
        model, prompt, words=[], foreign="dog", blocks=[0], keep="head", **settings
    )
    prefix = f"blocks.0.{attention}."
    names = [f"{prefix}img.hook_q", f"{prefix}txt.hook_k"]
    if family == "sd":
        _, cache = model.run_with_cache(prompt, names_filter=names, **settings)
        embeddings = shared_pipe(family).encode_prompt("dog", "cpu", 1, False)[0]
        tokens = embeddings[0, list(model.words("dog", "dog"))]
        module = model.denoiser.get_submodule(model.points[f"{prefix}hook_pattern"].module)
        own = module.to_k(tokens)[None, None].unflatten(-1, (module.heads, -1))
        keys = [cache[names[1]]]
    else:
        length = settings.get("max_sequence_length")
        with model.concept_streams(["dog"], max_sequence_length=length):
            names += [f"{prefix}img.hook_k", f"{prefix}concept.hook_k"]
            _, cache = model.run_with_cache(prompt, names_filter=names, **settings)
        own, keys = cache[names[3]], [cache[names[1]], cache[names[2]]]
    count = own.shape[2]
    joined = torch.cat([*keys, own], 2)[0].transpose(1, 2)
    query = cache[names[0]][0].transpose(1, 2)
    pattern = (query @ joined.mT * query.shape[-1] ** -0.5).softmax(-1)[..., -count:]
    torch.testing.assert_close(
        found.maps[0].flatten(-2), pattern[0].mT.detach(), atol=1e-6, rtol=1e-3
    )


def test_foreign_shares_survive_a_token_that_gets_no_attention() -> None:
    """The share of the first token underflows to 0 in every row."""
    query = torch.tensor([[[[2.0, 0.0]], [[2.0, 1.0]]]])  # batch pos head d_head
    text = torch.tensor([[[[-400.0, 0.0]], [[1.0, 0.0]], [[0.0, 3.0]]]])
    word = torch.tensor([[[0.5, 0.5]]])  # head word d_head
    rows, keys = query[0, :, 0], torch.cat([text[0, :, 0], word[0]])
    expected = (rows @ keys.mT / 2**0.5).softmax(-1)[:, 3]
    hook = context(0, 0, (1, 2), 1)
    collector = ForeignKeys(
        PatternSums(Aggregation()), [slice(0, 1)], among="prompt", keys={0: word}
    )
    collector.on_query(query, hook)
    collector.on_reference(text, hook)
    collector.on_pattern((rows @ text[0, :, 0].mT / 2**0.5).softmax(-1)[None, None], hook)
    torch.testing.assert_close(collector.sums.result()[0, 0, 0], expected)


def test_a_word_that_is_also_foreign_has_both_maps() -> None:
    found = maps("sd", words="cat", foreign="cat")
    plain = maps("sd", words="cat").word("cat")
    torch.testing.assert_close(found.word("cat", occurrence=0), plain)
    torch.testing.assert_close(found.word("cat"), found.maps[:, 1])
    assert not torch.allclose(found.maps[:, 1], plain)


def test_video_maps_have_frames() -> None:
    _, cache = patterns("cogvideox")
    found = maps("cogvideox", keep="step")
    assert found.axes == ("batch", "step", "token", "frame", "height", "width")
    frames, height, width = found.maps.shape[3:]
    whole = torch.stack([cache[name] for name in cache]).mean((0, 3))  # step batch query key
    assert whole.shape[2] == frames * height * width
    expected = whole[..., list(found.positions)].transpose(0, 1).mT
    torch.testing.assert_close(found.maps.flatten(3), expected)


def test_video_maps_are_drawn_over_their_frames() -> None:
    found = maps("cogvideox", words=["cat", "table"], keep="step", output_type="pil")
    pictures, count = found.images[0], found.maps.shape[3]
    assert len(pictures) == 9 and count == 3
    figure = found.overlay()
    assert len(figure.frames) == 2 * count
    assert [step.label for step in figure.layout.sliders[0].steps][-1] == "step 1, frame 2"
    sources = [frame.layout.images[0].source for frame in figure.frames]
    shown: Any = viz.overlays(pictures[4], found.word("cat")[0, 0, 1:2])
    assert sources[1] == shown.layout.images[0].source
    assert sources[:count] == sources[count:] and len(set(sources)) == count
    np.testing.assert_allclose(figure.frames[-1].data[1].z, found.word("table")[0, 1, 2])


def heats(figure: Any) -> list[Any]:
    """The maps of a figure, without the panels that show an image as it is."""
    return [one for one in figure.data if one.type == "heatmap"]


def test_overlays_have_a_panel_for_each_word() -> None:
    found = maps("sd", words=["cat", "glass table"], output_type="pil")
    with pytest.raises(ResultError, match="words= is empty"):
        found.overlay([])
    with pytest.raises(ResultError, match=r"size=\[8\]: give height and width"):
        found.mask(size=[8])
    figure = found.overlay(["glass table", "cat"])
    titles = [one.text for one in figure.layout.annotations]
    assert titles == ["image", "glass table", "cat"] and len(figure.layout.images) == 3
    np.testing.assert_allclose(figure.data[0].z, found.word("glass table")[0])
    np.testing.assert_allclose(figure.data[1].z, found.word("cat")[0])
    assert len(heats(found.plot())) == len(found.labels) == len(heats(found.overlay()))
    assert "Share of attention" in figure.layout.title.text
    assert figure.layout.coloraxis.colorbar.title.text == "share of attention"
    batch = maps("sd", [PROMPT, "a blue dog"], output_type="pil", num_inference_steps=1)
    figure = batch.overlay("dog", sample=1)
    np.testing.assert_allclose(figure.data[0].z, batch.word("dog", sample=1))


def test_plots_have_a_panel_for_each_head_and_a_slide_for_each_step() -> None:
    found = maps("sd", words="cat", keep=["head", "step"], blocks=[0], output_type="pil")
    figure = found.plot("cat")
    first, *titles = [one.text for one in figure.layout.annotations]
    assert first == "image" and titles == [f"0.{head}" for head in range(4)]
    assert len(figure.frames) == len(found.steps) > 1
    np.testing.assert_allclose(figure.frames[0].data[3].z, found.word("cat")[0, 0, 3])
    figure = found.overlay("cat")
    shown = [one.text for one in figure.layout.annotations]
    assert shown == ["image", *(f"cat, {title}" for title in titles)]
    np.testing.assert_allclose(figure.frames[1].data[3].z, found.word("cat")[0, 1, 3])


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["head", "block", ["step", "block"]])
def test_overlays_show_what_was_kept_apart(keep: Any) -> None:
    words = ["cat", "glass table"]
    found = maps("sd", words=words, keep=keep, blocks=[0, 3], output_type="pil")
    names = [f"{block}.{head}" for block, head in found.heads]
    names = names if keep == "head" else ["block 0", "block 3"]
    figure = found.overlay(words)
    _, *titles = [one.text.replace("<br>", " ") for one in figure.layout.annotations]
    assert titles == [f"{word}, {name}" for word in words for name in names]
    step = (figure.layout.sliders[0].active,) if "step" in keep else ()
    for panel, title in enumerate(titles):
        word, name = title.split(", ", 1)
        expected = found.word(word)[(0, *step, names.index(name))]
        np.testing.assert_allclose(figure.data[panel].z, expected)
    figure = found.plot()
    assert len(heats(figure)) == len(found.labels) * len(names)
    np.testing.assert_allclose(figure.data[1].z, found.maps[(0, *step, 1, 0)])


@pytest.mark.slow
def test_more_panels_than_anyone_sees_say_how_to_have_fewer() -> None:
    found = maps("sd", keep="head", output_type="pil")
    said = rf"{len(found.labels)} words times 28 heads are .* panels; at most 64 .*without keep='h"
    with pytest.raises(ResultError, match=said):
        found.overlay()
    assert len(heats(found.overlay(["cat", "table"]))) == 56


def test_bicubic_interpolation_overshoots_and_bilinear_does_not() -> None:
    pattern = torch.zeros(1, 1, 4, 1)
    pattern[0, 0, 0] = 1.0
    found = {}
    for mode in ("bicubic", "bilinear"):
        sums = PatternSums(Aggregation(upsample=mode))
        sums(pattern, context(0, 0, (2, 2), 1))
        found[mode] = float(sums.result((8, 8)).max())
    assert found["bicubic"] > 1.0 and found["bilinear"] == 1.0


def test_masks_are_cut_between_least_and_largest() -> None:
    values = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    found = maps("sd", words="cat")
    made = AttentionMaps(
        **{**vars(found), "maps": values[None, None], "positions": found.positions[:1]}
    )
    word = found.positions[0]
    assert made.mask(0.4, word=word).tolist() == [[[False, False], [True, True]]]
    assert made.mask(0.5).tolist() == [[[[False, False], [False, True]]]]
    assert made.mask(1.0, absolute=True).tolist() == [[[[False, False], [True, True]]]]
    assert made.mask(0.4, word=word, size=(6, 4)).shape == (1, 6, 4)


def test_maps_survive_saving(tmp_path: Path) -> None:
    found = maps("sd", keep=["step", "block"], foreign="dog", output_type="pil")
    again = AttentionMaps.load(found.save(tmp_path / "maps"))
    assert torch.equal(again.word("glass table"), found.word("glass table"))
    assert again.labels == found.labels and len(again.images) == 1
    kept = ("axes", "positions", "foreign", "prompts", "steps", "heads", "blocks", "citation")
    assert all(getattr(again, name) == getattr(found, name) for name in kept)


def test_the_other_branch_reads_its_own_prompt() -> None:
    found = maps("sd", negative_prompt="an old dog", branch="uncond", words="dog")
    assert found.word("dog").shape == (1, 16, 16)
    with pytest.raises(WordError, match="'cat' is not in the prompt 'an old dog'"):
        maps("sd", negative_prompt="an old dog", branch="uncond", words="cat")


def test_a_branch_of_skipped_layers_reads_the_prompt() -> None:
    model = HookedDiffusion(shared_pipe("sd35"))
    run = Run.of(PROMPT, seed=0, settings={"negative_prompt": "an old dog"})
    assert tokens_of(model, run, "skip") == tokens_of(model, run, "cond")
    assert tokens_of(model, run, "uncond")[0].texts[0] == "an old dog"


def test_embeddings_have_positions_only() -> None:
    pipe = shared_pipe("sd")
    embeddings, empty = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    settings = {k: v for k, v in short("sd").items() if k != "prompt"}
    model = HookedDiffusion(pipe)
    given = {**settings, "prompt_embeds": embeddings, "negative_prompt_embeds": empty}
    found = attention_maps(model, None, **given)
    assert found.maps.shape[1] == 77
    torch.testing.assert_close(found.word(3), maps("sd", words="cat").word("cat"))
    with pytest.raises(WordError, match="was given embeddings"):
        attention_maps(model, None, words="cat", **given)
    with pytest.raises(WordError, match="the prompts are not known"):
        found.word("cat")


@pytest.mark.parametrize(
    ("error", "message", "more"),
    [
        (WordError, "'dog' is not in the prompt", {"words": "dog"}),
        (WordError, "words= is empty", {"words": []}),
        (SiteError, "block 99 has no such attention; the blocks", {"blocks": [99]}),
        (SiteError, "blocks= is empty", {"blocks": []}),
        (SiteError, r"names \(0, 99\), but block 0 has 4 heads", {"heads": [(0, 99)]}),
        (SiteError, r"block 99 is not among the blocks", {"heads": [(99, 0)]}),
        (SiteError, "reaches beyond the 4 heads of a block, .* 0 to 3; negative", {"heads": [99]}),
        (SiteError, r"heads=\[-1\] reaches .* negative ones do not exist", {"heads": [-1]}),
        (SiteError, r"names \(0, -1\), but block 0 has 4 heads", {"heads": [(0, -1)]}),
        (SiteError, r"holds 1 where \(block, head\) pairs are meant", {"heads": [(0, 1), 1]}),
        (SiteError, r"holds \[1\] where \(block, head\) pairs", {"heads": [[1]]}),
        (SiteError, r"holds 0 where \(block, head\) pairs", {"heads": {0: 1.0}}),
        (ArgumentError, r"where item 0 is \(1, 2, 3\)", {"heads": [(1, 2, 3)]}),
        (SiteError, "heads= is empty", {"heads": []}),
        (SiteError, "weights of heads are 0 or more", {"heads": {(0, 0): -1.0}}),
        (SiteError, "no head has a weight above 0", {"heads": {(0, 0): 0.0}}),
        (SiteError, "foreign_among='x' is none of", {"foreign": "dog", "foreign_among": "x"}),
        (RunError, "preset='damm' is none of .* Closest: 'daam'", {"preset": "damm"}),
        (RunError, "keep='heads' is none of .* Closest: 'head'", {"keep": "heads"}),
        (RunError, "upsample='cubic' is none of", {"upsample": "cubic"}),
        (RunError, "belong to a given image", {"noise_level": 0.5}),
        (RunError, "num_samples=0 must be 1 or more", {"image": "x", "num_samples": 0}),
        (RunError, "so it has no steps=", {"image": "x", "steps": 1}),
        (RunError, "size=0 must be a height and a width", {"size": 0}),
        (RunError, r"size=\(8,\) must be a height and a width", {"size": (8,)}),
        (SiteError, "branch=None is none of .*; an analysis looks at one", {"branch": None}),
        (SiteError, "branch='all' is none of", {"branch": "all"}),
    ],
)
def test_bad_input_is_refused(error: type[Exception], message: str, more: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        maps("sd", **more)


def test_results_refuse_what_they_lack() -> None:
    found = maps("sd", words="cat")
    with pytest.raises(ResultError, match="sample 1 was asked for, there are 1"):
        found.word("cat", sample=1)
    with pytest.raises(WordError, match="need every token"):
        found.normalized()
    with pytest.raises(ResultError, match="no image to draw over"):
        found.overlay()
    assert "cat" in repr(found)
