"""Analyses on the tiny pipeline of every family, against values read and combined by hand."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import (
    ablation_sweep,
    activation_patching,
    attention_maps,
    attribution_patching,
    head_patterns,
)
from diffusion_lens.analyses.patching import text_difference
from diffusion_lens.errors import EngineError, PatchingError
from tests.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.tiny_pipelines.families import HEIGHT, WIDTH
from tests.tiny_videos.families import TINY_VIDEOS, tiny_video

PROMPT, OTHER = "a red cat on the glass table", "a red dog on the glass table"
FAST = ("qwen_image",)
SLOW = ("flux2", "z_image", "krea2", "chroma", "pixart", "wan", "ltx_video", "hunyuan_video")
SLOW += ("ltx2",)
GIVEN_AN_IMAGE = ("wan_i2v", "wan_ti2v_image", "wan_animate", "chrono_edit", "consisid")


def _marked(names: Iterable[str]) -> list[Any]:
    rare = pytest.mark.exhaustive
    marks: dict[str, Any] = {**dict.fromkeys(SLOW, pytest.mark.slow), **dict.fromkeys(FAST, ())}
    return [pytest.param(name, marks=marks.get(name, rare)) for name in names]


VIDEOS = [name for name in TINY_VIDEOS if name not in (*GIVEN_AN_IMAGE, "hunyuan_video_15")]
FAMILIES = _marked((*PIPELINES, *VIDEOS))
POOLED = {"hidream": "_get_clip_prompt_embeds", "kandinsky5": "_encode_prompt_clip"}
"""What makes the pooled text of families whose last layer reads it."""

REFUSED = {
    "ideogram4": "predictions of Ideogram4Transformer2DModel have 84 tokens, its latents 24",
    "ltx2": "LTX2VideoTransformer3DModel has further latents that single evaluations lack",
}
"""Why patching at the last residual is refused."""

# HunyuanDiT's and Mochi's text reaches the last norm past all blocks.
OTHERS = ("hunyuan_dit", "mochi")
PATCHED = _marked(name for name in (*PIPELINES, *VIDEOS) if name not in (*REFUSED, *OTHERS))

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def shared(name: str) -> HookedDiffusion:
    return HookedDiffusion(tiny_pipeline(name) if name in PIPELINES else tiny_video(name).pipe)


def settings(name: str) -> dict[str, Any]:
    """Of a run of two steps without guidance."""
    if name in PIPELINES:
        one = PIPELINES[name]
        height, width = one.pixels
        size = {"height": height, "width": width}
        return {
            "num_inference_steps": 2,
            "output_type": "pt",
            **size,
            **one.settings,
            **one.unguided,
        }
    video = tiny_video(name)
    found = {**video.settings, **video.unguided, "output_type": "pt"}
    return {key: value for key, value in found.items() if key not in ("prompt", "generator")}


def patterns(name: str) -> tuple[list[torch.Tensor], list[int]]:
    """Every pattern of image queries and text keys, and where the word lies in the text."""
    model, kept = shared(name), []
    sites = [site.with_(branch="cond") for site in model.text_pattern_sites()]
    hooks = [(site, lambda value, _: kept.append(value.double().clone())) for site in sites]
    model.run_with_hooks(PROMPT, fwd_hooks=hooks, seed=0, **settings(name))
    run = Run(PROMPT, **settings(name))
    return kept, list(model.prompt_tokens(PROMPT, run=run).find("cat"))


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_of_a_word_are_the_mean_of_its_patterns(name: str) -> None:
    model = shared(name)
    found = attention_maps(model, PROMPT, words=["cat"], seed=0, **settings(name))
    kept, word = patterns(name)
    each = torch.stack([value[..., word].mean(-1).mean(1) for value in kept]).mean(0)
    grid = found.maps.shape[found.axes.index("token") + 1 :]
    by_hand = each[:, : grid.numel()].unflatten(-1, grid)
    torch.testing.assert_close(
        found.word("cat").squeeze().double(), by_hand.squeeze(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_masses_of_a_word_are_those_of_its_patterns(name: str) -> None:
    found = head_patterns(shared(name), PROMPT, words=["cat"], every=1, seed=0, **settings(name))
    kept, word = patterns(name)

    assert found.mass is not None
    # Only tokens of the image itself ask: those that Z-Image is filled up with do not.
    tokens = HEIGHT * WIDTH if name in PIPELINES else None
    by_hand = torch.stack([value[:, :, :tokens, word].mean(-2) for value in kept])
    assert found.mass.sum() == pytest.approx(float(by_hand.sum()), rel=1e-4)


@pytest.mark.parametrize("name", _marked(("qwen_image", "z_image", "pixart", "wan")))
def test_maps_of_a_foreign_word_are_its_share_of_all_keys(name: str) -> None:
    """Worked out again from queries and keys, with a softmax over them and the word's own."""
    model, run = shared(name), {**settings(name), "num_inference_steps": 2}
    found = attention_maps(
        model, PROMPT, words=[], foreign="dog", blocks=[0], keep="head", steps=0, seed=0, **run
    )
    length = run.get("max_sequence_length")
    if name in ("pixart", "wan"):
        names = ["img.hook_q", "txt.hook_k"]
        site = [f"blocks.0.cross_attn.{one}" for one in names]
        _, cache = model.run_with_cache(PROMPT, names_filter=site, steps=0, seed=0, **run)
        _, alone = model.run_with_cache("dog", names_filter=site[1], steps=0, seed=0, **run)
        places = list(model.words("dog", "dog", max_sequence_length=length))
        keys = [cache[site[1]][0], alone[site[1]][0][:, places]]
        mask = model.prompt_tokens(PROMPT, run=Run(PROMPT, **run)).positions
        keys[0] = keys[0][:, list(mask)] if name == "pixart" else keys[0]  # padding is masked
    else:
        names = ["img.hook_q", "txt.hook_k", "img.hook_k", "concept.hook_k"]
        site = [f"blocks.0.attn.{one}" for one in names]
        with model.concept_streams(["dog"], max_sequence_length=length):
            _, cache = model.run_with_cache(PROMPT, names_filter=site, steps=0, seed=0, **run)
        keys = [cache[one][0] for one in site[1:]]
    grid = found.maps.shape[found.axes.index("token") + 1 :]
    query = cache[site[0]][0][:, : grid.numel()].transpose(1, 2)
    joined = torch.cat(keys, 1).transpose(1, 2)
    pattern = (query @ joined.mT * query.shape[-1] ** -0.5).softmax(-1)[..., -keys[-1].shape[1] :]
    # One map for each of the word's tokens.
    expected = pattern[0].mT.unflatten(-1, grid)
    torch.testing.assert_close(found.maps.reshape(expected.shape), expected, rtol=1e-3, atol=1e-5)


def swept(name: str, **more: Any) -> dict[str, Any]:
    """Arguments of a sweep over the last residual alone."""
    return {"axes": ("block",), "seeds": 1, "show_progress": False, **settings(name), **more}


def last_residual(name: str) -> str:
    return f"blocks.{shared(name).n_blocks - 1}.img.hook_resid_post"


@pytest.mark.parametrize("name", PATCHED)
def test_the_last_residual_decides_the_prediction(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = swept(name, sites=[last_residual(name)])
    if name == "hunyuan_video":  # CLIP's words reach the last norm past all blocks
        given["pooled_prompt_embeds"] = torch.zeros(1, 20)
    if name in POOLED:  # modulates what comes behind the blocks, too
        pipe: Any = shared(name).pipe
        method, original = POOLED[name], getattr(pipe, POOLED[name])
        monkeypatch.setattr(pipe, method, lambda *a, **k: 0 * original(*a, **k))
    found = activation_patching(shared(name), PROMPT, OTHER, **given)
    effects = torch.as_tensor(found.effects)
    torch.testing.assert_close(effects, torch.ones_like(effects), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PATCHED)
def test_attributions_of_the_last_residual_are_finite_and_not_zero(name: str) -> None:
    given = swept(name, sites=[Site(last_residual(name))])
    found = attribution_patching(shared(name), PROMPT, OTHER, **given)
    assert bool(torch.isfinite(torch.as_tensor(found.effects)).all())
    assert float(torch.as_tensor(found.effects).abs().sum()) > 0


SWEPT = _marked(
    (
        "z_image",
        "wan",
        "ltx_video",
        "hunyuan_video",
        "qwen_image",
        "skyreels_v2",
        "wan_ti2v_image",
        "wan_vace",
    )
)


@pytest.mark.parametrize("name", SWEPT)
def test_patches_of_single_steps_are_those_of_plain_hooks(name: str) -> None:
    """Of both samples of a batch, with rows that start in the middle, against runs of one step."""
    model, site = shared(name), "blocks.0.img.hook_resid_post"
    given = swept(name, axes=("block", "step"), seeds=2, steps=[1], metric=_mean)
    found = activation_patching(model, PROMPT, OTHER, sites=[site], least=1e-12, **given)
    run = {key: given[key] for key in settings(name)}
    for seed in range(2):
        _, kept = model.run_with_cache(PROMPT, names_filter="hook_sample", seed=seed, **run)
        latents = kept["hook_sample"][1]
        _, source = _denoised(model, latents, PROMPT, run, site)
        clean, _ = _denoised(model, latents, PROMPT, run, site)
        base, _ = _denoised(model, latents, OTHER, run, site)
        patched, _ = _denoised(model, latents, OTHER, run, site, put=source)
        expected = (patched.mean() - base.mean()) / (clean.mean() - base.mean())
        effect = torch.as_tensor(found.samples).flatten()[seed]
        torch.testing.assert_close(effect.float(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", [*SWEPT, *_marked(["ltx2"])])
def test_patches_and_ablations_of_whole_runs_are_those_of_plain_hooks(name: str) -> None:
    """In a window of one step, with runs that branch off there, and at every step."""
    model, site = shared(name), "blocks.0.img.hook_attn_out"
    # Two parts, so that rows of a batch are samples several times over.
    sites = [site, site.replace("blocks.0", "blocks.1")]
    given, run = swept(name, axes=("block", "step"), seeds=2, sites=sites), settings(name)
    run["output_type"] = "latent"
    window: dict[str, Any] = {"mode": "window", "steps": [1], "metric": _mean, "least": 1e-12}
    patched = activation_patching(model, PROMPT, OTHER, **given, **window)
    ablated = ablation_sweep(model, PROMPT, **{**given, "axes": ("block",)})
    for seed in range(2):

        def final(prompt: str, *hooks: Any, seed: int = seed) -> torch.Tensor:
            out = model.run_with_hooks(prompt, seed=seed, fwd_hooks=hooks, **run)
            assert out.latents is not None
            return out.latents

        at = Site(site, steps=1, branch="cond")
        _, source = model.run_with_cache(PROMPT, names_filter=[at], seed=seed, **run)
        changed = final(OTHER, (at, lambda _value, _hook, put=source[site][0]: put))
        ends = [final(prompt).mean() for prompt in (PROMPT, OTHER)]
        expected = (changed.mean() - ends[1]) / (ends[0] - ends[1])
        effect = torch.as_tensor(patched.samples)[0].flatten()[seed]
        torch.testing.assert_close(effect.float(), expected, rtol=2e-2, atol=2e-3)
        without = final(PROMPT, (Site(site, branch="cond"), lambda value, _hook: value * 0))
        distance = (without - final(PROMPT)).square().mean().sqrt()
        effect = torch.as_tensor(ablated.samples)[0].flatten()[seed]
        torch.testing.assert_close(effect.float(), distance, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", _marked(REFUSED))
def test_patching_is_refused_where_rows_or_tokens_cannot_be_told_apart(name: str) -> None:
    given = swept(name, sites=[last_residual(name)])
    with pytest.raises((PatchingError, EngineError), match=REFUSED[name]):
        activation_patching(shared(name), PROMPT, OTHER, **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "ltx_video"])
def test_metrics_of_images_see_the_frames_of_videos(name: str) -> None:
    seen: list[tuple[int, ...]] = []

    def score(images: Any, texts: Any) -> torch.Tensor:
        assert len(images) == len(texts)
        seen.append(images.shape)
        return torch.as_tensor(images, dtype=torch.float32).flatten(1).mean(1)

    metric = text_difference(score, towards="a", away="b")
    given = swept(name, sites=[last_residual(name)], steps=[1], metric=metric, mode="on-trajectory")
    activation_patching(shared(name), PROMPT, OTHER, **given, least=1e-12)
    video = tiny_video(name)
    assert {shape[1:] for shape in seen} == {(*video.size, 3)}
    assert {shape[0] for shape in seen} == {video.frames}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lumina2", "z_image", "qwen_image", "wan", "pixart"])
def test_clean_latents_of_single_steps_are_those_of_the_pipeline(name: str) -> None:
    """Also where the pipeline turns the prediction round before its scheduler sees it."""
    found: list[torch.Tensor] = []

    def keep(outcome: Any) -> torch.Tensor:
        found.append(outcome.clean_latents)
        return outcome.value.flatten(1).mean(1)

    given = swept(name, sites=[last_residual(name)], steps=[1], metric=keep, least=1e-12)
    activation_patching(shared(name), PROMPT, OTHER, **given)
    _, cache = shared(name).run_with_cache(
        PROMPT, names_filter=["hook_pred_x0"], steps=1, seed=0, **settings(name)
    )
    torch.testing.assert_close(found[0], cache["hook_pred_x0"][0], rtol=1e-3, atol=1e-4)


def _mean(outcome: Any) -> torch.Tensor:
    return outcome.value.flatten(1).mean(1)


def _denoised(
    model: HookedDiffusion,
    latents: torch.Tensor,
    prompt: str,
    run: dict[str, Any],
    site: str,
    put: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The raw prediction of one step, and what the site held there."""
    seen: list[torch.Tensor] = []

    def change(value: torch.Tensor, _hook: Any) -> torch.Tensor | None:
        seen.append(value.clone())
        return put

    found: list[torch.Tensor] = []
    keep = ("hook_noise_pred", lambda value, _hook: found.append(value.clone()))
    with model.hooks([(Site(site, branch="cond"), change), keep]):
        model.denoise(latents, prompt=prompt, step=1, **run)
    return found[0], seen[0]
