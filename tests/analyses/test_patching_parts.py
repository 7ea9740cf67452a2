"""The parts of a sweep: aligned words, grids of cells, resuming, results, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.patching import (
    PatchingResult,
    WordNoise,
    activation_patching,
    graded,
    text_difference,
)
from diffusion_lens.analyses.patching.alignment import align, word_spans
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.several import several_samples
from diffusion_lens.engine.restart import Replay
from diffusion_lens.errors import (
    ArgumentError,
    EngineError,
    PatchingError,
    ResultError,
)
from tests.pipelines import shared_pipe, short
from tests.tiny_pipelines import PIPELINES, tiny_pipeline

CLEAN, CORRUPTED = "a red cat on a table", "a blue dog on a table"
RESIDUAL = "blocks.*.img.hook_resid_post"


@pytest.fixture
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd3"))


def patched(model: HookedDiffusion, clean: Any, corrupted: Any, **more: Any) -> PatchingResult:
    fixed = ("latents", "prompt", "output_type")
    settings = {name: one for name, one in short("sd3").items() if name not in fixed}
    given = {"seeds": (3, 4), "steps": [1], "show_progress": False, "sites": RESIDUAL}
    return activation_patching(model, clean, corrupted, **{**given, **settings, **more})


class TestAlignment:
    def test_every_occurrence_of_a_word_has_its_own_tokens(self, model: HookedDiffusion) -> None:
        spans = word_spans(model, Run("a cat on a table"))
        assert [word for word, _ in spans] == ["a", "cat", "on", "a", "table"]
        positions = [position for _, tokens in spans for position in tokens]
        assert len(set(positions)) == len(positions)
        both = sorted(model.words("a cat on a table", "a"))
        assert sorted([*spans[0][1], *spans[3][1]]) == both
        assert all(any(one >= 77 for one in tokens) for _, tokens in spans)  # CLIP's and T5's
        cut = word_spans(model, Run("a cat on a table", max_sequence_length=3))
        kept = max(position for _, tokens in cut for position in tokens)
        assert kept < 77 + 2  # the last place is the end mark's, and no word's

    def test_alike_prompts_have_the_same_positions(self) -> None:
        toy = HookedDiffusion.toy("shapes-unet")
        found = align(toy, Run("a red circle"), Run("a blue circle"))
        assert found.tokens is None and found.unmatched == ()
        assert found.words == (("a", "a"), ("blue", "red"), ("circle", "circle"))

    def test_words_are_matched_where_lengths_differ(self) -> None:
        toy = HookedDiffusion.toy("shapes-unet")
        found = align(toy, Run("a small red circle"), Run("a blue circle"))
        assert found.words == (("a", "a"), ("circle", "circle"))
        assert set(found.unmatched) == {"blue", "small", "red"}
        (circle,), (there,) = (
            toy.words("a blue circle", "circle"),
            toy.words("a small red circle", "circle"),
        )
        assert found.tokens is not None and found.tokens[circle] == there != circle
        replaced = align(toy, Run("a striped red circle"), Run("a large blue circle on black"))
        assert ("blue", "red") in replaced.words and "on" in replaced.unmatched

    def test_prompts_without_a_common_word_are_refused(self) -> None:
        toy = HookedDiffusion.toy("shapes-unet")
        with pytest.raises(PatchingError, match="no word of 'two words' has a partner in 'one'"):
            align(toy, Run("one"), Run("two words"))

    def test_only_aligned_words_are_patched(self) -> None:
        toy = HookedDiffusion.toy("shapes-unet")
        seen: list[Tensor] = []

        def keep(value: Tensor, hook: Any) -> None:
            seen.append(value.clone())

        keep.read_only = True  # type: ignore[attr-defined]  # so that it comes after the patch
        clean, corrupted = "a small red circle", "a blue circle"
        given = {"num_inference_steps": 1, "guidance_scale": 1.0, "seeds": (0,)}
        with toy.hooks([("hook_text_emb", keep)]):
            result = activation_patching(
                toy, clean, corrupted, sites="hook_text_emb", axes=("pos",), show_progress=False,
                batch_size=1, **given,
            )  # fmt: skip
        assert result.labels["pos"] == ("a", "circle")
        source, base, circle = seen[-4], seen[-3], seen[-1]
        (mine,), (theirs,) = toy.words(corrupted, "circle"), toy.words(clean, "circle")
        assert torch.equal(circle[:, mine], source[:, theirs])
        others = [place for place in range(base.shape[1]) if place != mine]
        assert torch.equal(circle[:, others], base[:, others])
        assert result.made_by["unmatched words"] == ["blue", "small", "red"]
        with pytest.raises(PatchingError, match="no partner in the source's"):
            activation_patching(
                toy, clean, corrupted, sites=Site("hook_text_emb", pos="blue"), axes=(), **given
            )
        with pytest.raises(PatchingError, match="rows that do not sum to 1"):
            activation_patching(toy, clean, corrupted, sites="**.hook_pattern", **given)


class TestGrids:
    @pytest.mark.slow
    def test_what_has_the_same_labels_is_patched_together(self, model: HookedDiffusion) -> None:
        z = {"sites": "blocks.0.attn.*.hook_z"}
        apart = patched(model, CLEAN, CORRUPTED, **z, axes=("stream", "head"))
        assert apart.effects.shape == (2, 4)
        joined = patched(model, CLEAN, CORRUPTED, **z, axes=("head",))
        assert joined.effects.shape == (4,)
        assert not torch.allclose(apart.effects.sum(0), joined.effects, rtol=1e-3)
        some = patched(
            model, CLEAN, CORRUPTED, sites=Site(z["sites"], heads=[1, 3]), axes=("head",)
        )
        assert some.labels["head"] == (1, 3)
        torch.testing.assert_close(some.effects, joined.effects[[1, 3]])

    @pytest.mark.slow
    def test_words_and_places_are_parts(self, model: HookedDiffusion) -> None:
        text = {"sites": "blocks.0.txt.hook_resid_pre"}
        words = patched(model, CLEAN, CORRUPTED, **text, axes=("pos",))
        assert words.labels["pos"] == ("a", "blue ← red", "dog ← cat", "on", "a (4)", "table")
        one = patched(model, CLEAN, CORRUPTED, **text, axes=("pos",), positions=["blue", 0])
        assert one.labels["pos"] == ("blue", 0)
        torch.testing.assert_close(one.effects[0], words.effects[1])
        site = Site("blocks.0.txt.hook_resid_pre", pos="blue")
        same = patched(model, CLEAN, CORRUPTED, sites=site, axes=())
        torch.testing.assert_close(same.effects, words.effects[1])
        image = {"sites": Site("blocks.0.img.hook_resid_post", pos=range(8, 24)), "axes": ()}
        region = patched(model, CLEAN, CORRUPTED, **image)
        whole = patched(model, CLEAN, CORRUPTED, sites="blocks.0.img.hook_resid_post", axes=())
        assert 0 < abs(region.effects) < abs(whole.effects)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("message", "more"),
        [
            ("axes=.*Closest: 'head'", {"axes": ("heads",)}),
            ("has no heads", {"axes": ("head",)}),
            ("lies outside the blocks", {"sites": "hook_timestep_emb"}),
            ("has no text positions", {"axes": ("pos",)}),
            ("selected by two of the sites", {"sites": [RESIDUAL, "blocks.0.img.hook_resid_post"]}),
            ("nothing is left to replace.*No hook point has", {"sites": Site(RESIDUAL, heads=0)}),
            ("has the steps 0 to 1", {"sites": Site(RESIDUAL, steps=[1, 2])}),
            ("has the steps 0 to 1", {"sites": Site(RESIDUAL, steps=slice(0, 10**12))}),
            ("has the steps 0 to 1", {"sites": Site(RESIDUAL, steps=slice(2, None))}),
            (
                r"pair \(7, 0\), but selects heads of the blocks 0 only",
                {"sites": Site("blocks.*.attn.img.hook_z", heads=[(0, 1), (7, 0)])},
            ),
            ("comes after it; use mode='on-trajectory'", {"sites": "hook_pred_x0", "axes": ()}),
            ("in the branch 'uncond'", {"branch": "uncond"}),
            ("mode='forced' is none of .*'teacher-forced'", {"mode": "forced"}),
            ("no effect of a single step", {"mode": "on-trajectory", "axes": ("step",)}),
            ("put 'step' among the axes", {"mode": "window"}),
            ("direction='noising' is none of .*'noise'", {"direction": "noising"}),
            ("the run has the steps 0 to 1", {"steps": [7]}),
            ("the run has the steps 0 to 1", {"steps": 7}),
            ("window=2: .* 1 to 1 steps", {"mode": "window", "axes": ("step",), "window": 2}),
            ("batch_size=0, level=0.95: a batch has at least one row", {"batch_size": 0}),
            ("level=95: .* between 0 and 1", {"level": 95}),
            ("give how many samples", {"seeds": (3, 3)}),
            ("give how many samples", {"seeds": 0}),
            ("give how many samples", {"seeds": ()}),
            ("give how many samples", {"seeds": -1}),
            ("give how many samples", {"seeds": [0, -1]}),
            ("gave shape .* one number for each row", {"metric": lambda outcome: torch.ones(7)}),
        ],
    )
    def test_bad_input_is_refused(
        self, model: HookedDiffusion, message: str, more: dict[str, Any]
    ) -> None:
        with pytest.raises(PatchingError, match=re.compile(message, re.DOTALL)):
            patched(model, CLEAN, CORRUPTED, **more)

    @pytest.mark.parametrize(
        ("message", "more"),
        [
            ("takes int from 1", {"mode": "window", "axes": ("step",), "window": 0}),
            ("takes a function", {"metric": "latent_recovery"}),
        ],
    )
    def test_what_no_argument_can_be_is_refused_at_the_border(
        self, model: HookedDiffusion, message: str, more: dict[str, Any]
    ) -> None:
        with pytest.raises(ArgumentError, match=message):
            patched(model, CLEAN, CORRUPTED, **more)

    @pytest.mark.parametrize(
        ("message", "clean", "corrupted", "seeds"),
        [
            ("a single prompt for each run", Run(("a", "b")), "a", None),
            ("start from different noise", Run(CLEAN, seed=1), Run(CORRUPTED, seed=2), None),
            ("start from different noise", Run(CLEAN, seed=0), Run(CORRUPTED, seed=2), None),
            ("random noise, which the two cannot share", Run(CLEAN, seed=None), CORRUPTED, None),
            ("seeds of their own", Run(CLEAN, seed=1), CORRUPTED, (3,)),
            ("'dog' is not in the prompt", CLEAN, WordNoise("dog"), (3,)),
            (
                "different latents",
                Run(CLEAN, latents=torch.zeros(1, 2)),
                Run(CORRUPTED, latents=torch.ones(1, 2)),
                None,
            ),
            ("2 seeds for 1 given", Run(CLEAN, latents=torch.zeros(1, 2)), CORRUPTED, (1, 2)),
        ],
        ids=["prompts", "noise", "default", "random", "seeds", "word", "latents", "count"],
    )
    def test_runs_that_make_no_pair(
        self, model: HookedDiffusion, message: str, clean: Any, corrupted: Any, seeds: Any
    ) -> None:
        with pytest.raises(PatchingError, match=message):
            patched(model, clean, corrupted, seeds=seeds)

    @pytest.mark.slow
    @pytest.mark.parametrize("restart", [True, False], ids=["restart", "whole"])
    @pytest.mark.parametrize("mode", ["teacher-forced", "on-trajectory"])
    @pytest.mark.parametrize("point", ["hook_resid_post", "attn.txt.hook_z"])
    def test_embeddings_of_another_length_are_refused(
        self, model: HookedDiffusion, point: str, mode: str, restart: bool
    ) -> None:
        with torch.no_grad():
            found = model.pipe.encode_prompt(CLEAN, CLEAN, CLEAN, device="cpu")  # type: ignore[union-attr]
        names = ("prompt_embeds", "negative_prompt_embeds")
        text = {name: one[:, :-7] for name, one in zip(names, found, strict=False)}
        pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        clean = Run(**text, **dict(zip(pooled, found[2:], strict=True)))
        more = {"mode": mode, "restart": restart, "seeds": (3,)}
        sites = f"blocks.0.txt.{point}" if point == "hook_resid_post" else f"blocks.0.{point}"
        with pytest.raises(PatchingError, match=r"text of one length, or patch image-side"):
            patched(model, clean, CORRUPTED, sites=sites, **more)
        image = patched(model, clean, CORRUPTED, sites=sites.replace("txt", "img"), **more)
        assert not image.effects.isnan().any()


@pytest.mark.slow
def test_noise_enters_several_words_in_a_row(model: HookedDiffusion) -> None:
    with pytest.raises(PatchingError, match="words= is empty"):
        WordNoise([])
    apart, joined, absent = WordNoise(["red", "cat"]), WordNoise("Red cat"), WordNoise("cat red")
    effects = [patched(model, CLEAN, noise).samples for noise in (apart, joined)]
    assert torch.equal(*effects)
    with pytest.raises(PatchingError, match=r"'cat red' is not in .* its words are a, red, cat"):
        patched(model, CLEAN, absent)


def test_a_pair_without_a_difference_says_so(model: HookedDiffusion) -> None:
    same = patched(model, CLEAN, CLEAN)
    assert same.effects.isnan().all() and "source and base score alike" in str(same)


class TestResults:
    def result(self, model: HookedDiffusion) -> PatchingResult:
        return patched(model, CLEAN, CORRUPTED, axes=("step", "block"), steps=[0, 1])

    def test_it_survives_saving(self, model: HookedDiffusion, tmp_path: Path) -> None:
        found = self.result(model)
        again = PatchingResult.load(found.save(tmp_path / "result"))
        for name in ("effects", "low", "high", "samples", "source", "base"):
            assert torch.equal(getattr(again, name), getattr(found, name))
        assert (again.axes, again.labels, again.seeds) == (found.axes, found.labels, found.seeds)
        assert again.made_by["clean"]["prompt"] == CLEAN

    def test_it_gives_rows(self, model: HookedDiffusion, monkeypatch: Any) -> None:
        found = self.result(model)
        records = found.records()
        assert len(records) == 2 * model.n_blocks
        assert list(records[0]) == ["step", "block", "effect", "low", "high", "samples"]
        assert records[0]["low"] <= records[0]["effect"] <= records[0]["high"]
        assert records[0]["samples"] == 2
        assert found.top(1)[0]["effect"] == found.effects.max()
        assert found.at(step=1).effects.shape == (model.n_blocks,)
        frames = SimpleNamespace(DataFrame=SimpleNamespace(from_records=list))
        monkeypatch.setitem(sys.modules, "pandas", frames)
        assert found.to_dataframe() == records
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ResultError, match="needs pandas"):
            found.to_dataframe()

    def test_what_it_has_not_is_refused(self, model: HookedDiffusion) -> None:
        found = self.result(model)
        with pytest.raises(ResultError, match=r"no axis 'blok'.*Closest: 'block'"):
            found.at(blok=1)
        with pytest.raises(ResultError, match="no label 99 along 'block'"):
            found.at(block=99)
        with pytest.raises(ResultError, match="different grids"):
            found.rank_correlation(found.at(step=1))
        assert found.rank_correlation(found) == pytest.approx(1.0)

    @pytest.mark.slow
    @pytest.mark.parametrize("axes", [("block",), ("step", "block"), ()], ids=str)
    def test_it_has_a_picture(self, model: HookedDiffusion, axes: tuple[str, ...]) -> None:
        found = patched(model, CLEAN, CORRUPTED, axes=axes)
        assert found.plot(title="effects").data


class TestScores:
    @pytest.mark.slow
    def test_images_are_graded_and_compared_with_texts(self) -> None:
        toy = HookedDiffusion.toy("shapes-unet")
        texts: list[str] = []

        def score(images: Any, given: Sequence[str]) -> Tensor:
            texts.extend(given)
            assert images.shape[1:] == (32, 32, 3)
            redness = images[..., 0].mean((1, 2)) - images[..., 2].mean((1, 2))
            return torch.tensor(redness) * (1 if "red" in given[0] else -1)

        pair = "a red square", "a blue square"
        settings = {"num_inference_steps": 6, "guidance_scale": 2.0, "seeds": (0,)}
        common = {"sites": "hook_text_emb", "axes": (), "mode": "on-trajectory", **settings}
        right = graded(pair[0], part="colour")
        for metric in (right, text_difference(score, towards=pair[0], away=pair[1])):
            result = activation_patching(toy, *pair, metric=metric, show_progress=False, **common)
            assert result.effects.item() == pytest.approx(1.0)
        assert set(texts) == set(pair)
        with pytest.raises(PatchingError, match="says nothing of 'texture'"):
            graded("a red square", part="texture")


class TestReplay:
    def test_a_module_that_did_not_run_is_no_start(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        with pytest.raises(EngineError, match="1 did not run"):
            Replay(net, frozenset({"1"})).begins_before("1")

    def test_what_ran_before_is_not_run_again(self) -> None:
        first = nn.Linear(2, 2)
        net = nn.Sequential(first, nn.Linear(2, 2), nn.Linear(2, 2))
        replay = Replay(net, frozenset({"1", "2"}))
        given = torch.randn(3, 2)
        with torch.no_grad(), replay.recording(3):
            expected = net(given)
        calls: list[int] = []
        for number, layer in enumerate(net):
            layer.register_forward_hook(lambda *_, number=number: calls.append(number))
        weight = first.weight.detach().clone()
        with torch.no_grad():
            first.weight.zero_()
            with replay.starting_at("1", torch.tensor([2, 0])):
                assert torch.equal(net(given[:2]), expected[[2, 0]])
            with replay.starting_at("2", torch.tensor([1]), output=torch.ones(1, 2)):
                assert torch.equal(net(given[:1]), torch.ones(1, 2))
            first.weight.copy_(weight)
            torch.testing.assert_close(net(given), expected)
        assert not any("forward" in vars(layer) for layer in net)

    def test_modules_whose_rows_cannot_be_told_apart_run_anew(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        replay = Replay(net, frozenset({"1"}))
        given = torch.randn(1, 2)
        with torch.no_grad(), replay.recording(2):
            net(torch.randn(6, 2))
        with torch.no_grad(), replay.starting_at("1", torch.tensor([0])):
            found = net(given)
        torch.testing.assert_close(found, net(given))

    def test_rows_of_a_restart_that_cannot_be_told_apart_are_refused(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        replay = Replay(net, frozenset({"1"}))
        with torch.no_grad(), replay.recording(2):
            net(torch.randn(6, 2))
        with pytest.raises(EngineError, match="cannot be told apart"):
            replay.output("1", torch.tensor([0]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["teacher-forced", "on-trajectory"])
def test_videos_say_their_prompt_for_each_sample(mode: str) -> None:
    """CogVideoX has an argument for several videos of a prompt, and sets it to 1."""
    video = HookedDiffusion(shared_pipe("cogvideox"))
    given = {
        name: one for name, one in short("cogvideox").items() if name not in ("prompt", "latents")
    }
    last = f"blocks.{video.n_blocks - 1}.img.hook_resid_post"
    sweep: dict[str, Any] = {"sites": last, "mode": mode, "show_progress": False}
    found = activation_patching(
        video,
        "a cat",
        "a dog",
        seeds=2,
        branch=None if mode != "teacher-forced" else "cond",
        **sweep,
        **given,
    )
    torch.testing.assert_close(found.effects, torch.ones_like(found.effects), rtol=1e-3, atol=1e-3)
    pair = Pair.of(
        "a", "b", direction="noise", seeds=2, settings={"negative_prompt": "c"}, repeats=None
    )
    run = pair.batch(pair.base, [0, 1, 1])
    assert (run.prompts, run.seed, run.samples) == (["a"] * 3, (0, 1, 1), 3)
    assert run.settings["negative_prompt"] == ["c"] * 3


def test_given_embeddings_cannot_be_said_for_each_sample() -> None:
    embeddings = Run(None, prompt_embeds=torch.zeros(1, 2, 3))
    pair = Pair.of(embeddings, embeddings, direction="noise", seeds=2, settings={}, repeats=None)
    assert pair.batch(pair.base, [0]).samples == 1
    with pytest.raises(PatchingError, match="one sample of given embeddings; give the prompt as"):
        pair.batch(pair.base, [0, 1])


def test_pipelines_that_make_one_sample_of_an_image_say_how_to_sweep() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    run = Run(["a", "a"], seed=[0, 1], image="one")
    said = r"could not make 2 samples from one image .*index 1.* seeds=1 and batch_size=1"
    with pytest.raises(PatchingError, match=said), several_samples(model, run):
        raise IndexError("index 1 is out of bounds")
    with pytest.raises(IndexError), several_samples(model, run.with_(prompt="a", seed=0)):
        raise IndexError("of a single sample")
    with pytest.raises(ResultError), several_samples(model, run):
        raise ResultError("of our own")


@pytest.mark.slow
def test_noise_on_words_of_a_chat_is_refused() -> None:
    """The words' tokens differ behind a template, and nothing would be corrupted."""
    model = HookedDiffusion(tiny_pipeline("qwen_image"))
    sweep: dict[str, Any] = {"sites": "blocks.0.img.hook_resid_post", "show_progress": False}
    one = PIPELINES["qwen_image"]
    given = {"height": 16, "width": 24, "num_inference_steps": 1, **one.settings, **one.unguided}
    with pytest.raises(PatchingError, match="puts the prompt into a chat or template"):
        activation_patching(model, "a red cat", WordNoise("cat"), seeds=1, **sweep, **given)
