"""What single video families have of their own, and what is refused in them."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.architectures import registry
from diffusion_lens.architectures.spec import ModulePoint
from diffusion_lens.architectures.wan import WAN
from diffusion_lens.errors import (
    EngineError,
    HookNeverFiredError,
    RunError,
    UnsupportedModelError,
    WordError,
)
from diffusion_lens.testing import check_architecture, tiny_denoiser
from diffusion_lens.testing.report import CLAUSES
from tests.pipelines import latents_of
from tests.tiny_videos import others
from tests.tiny_videos.families import fresh_video, tiny_video
from tests.tiny_videos.hunyuan import hunyuan_video_15
from tests.tiny_videos.settings import PROMPT, picture
from tests.tiny_videos.wan import wan_ti2v


def test_an_embedding_of_each_tokens_timestep_is_not_taken_for_the_one() -> None:
    made, name = fresh_video(wan_ti2v), "hook_timestep_emb"
    model = HookedDiffusion(made.pipe)
    message = f"never fired at {name}.*every token has a timestep.* shape .1, 18, 32."
    with pytest.raises(HookNeverFiredError, match=message):
        model.run_with_cache(**made.settings, names_filter=name)
    native = "native:condition_embedder.time_embedder"
    _, cache = model.run_with_cache(**made.settings, names_filter=["hook_*", native])
    assert name not in cache and cache[native][0].shape == (1, 18, 32)


@pytest.mark.slow
def test_ltx_video_with_a_given_frame_is_read_as_it_is() -> None:
    from diffusers import LTXImageToVideoPipeline

    made, seen = tiny_video("ltx_video"), {}
    pipe = LTXImageToVideoPipeline(**made.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    model, settings = HookedDiffusion(pipe), made.settings | {"image": picture()}

    def note(_value: Tensor, hook: Any) -> None:
        seen.setdefault(hook.name, []).append(hook.timestep)

    hooked = model.run_with_hooks(**settings, fwd_hooks=[("**", note)])
    assert torch.equal(latents_of(hooked), latents_of(model(**settings)))
    assert set(model.points) - set(seen) == {"hook_timestep_emb"}
    assert sorted(set(seen["hook_latents"])) == sorted(pipe.scheduler.timesteps.tolist())


@pytest.mark.slow
def test_a_timestep_for_each_token_keeps_the_rest_of_the_contract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacking(denoiser: Any) -> tuple[ModulePoint, ...]:
        return tuple(point for point in WAN.outside(denoiser) if point.name != "hook_timestep_emb")

    monkeypatch.setitem(registry._REGISTERED, WAN.denoiser, replace(WAN, outside=lacking))
    denoiser, inputs = tiny_denoiser("wan")
    tokens = inputs["hidden_states"][:, 0, :, ::2, ::2].flatten(1)
    timestep = torch.full_like(tokens, 500)
    timestep[:, : tokens.shape[1] // 2] = 0
    report = check_architecture(denoiser, inputs | {"timestep": timestep})
    assert set(report.checked) == set(CLAUSES)
    assert [one.partition(":")[0] for one in report.skipped] == ["hook_timestep_emb"]


@pytest.mark.slow
def test_an_image_is_attended_to_beside_the_text() -> None:
    made, sizes = tiny_video("wan_i2v"), {}
    model = HookedDiffusion(made.pipe)

    def note(value: Tensor, hook: Any) -> None:
        sizes[hook.name.removeprefix("blocks.0.cross_attn.")] = value.shape[-1]

    names = ["hook_pattern", "ip.hook_pattern"]
    hooks = [(f"blocks.0.cross_attn.{name}", note) for name in names]
    model.run_with_hooks(**made.settings, fwd_hooks=hooks)
    assert sizes == {"hook_pattern": 512, "ip.hook_pattern": 5}
    with pytest.raises(EngineError, match=r"510 text tokens go with 5 of an image.*=512"):
        model.run_with_hooks(**made.settings | {"max_sequence_length": 510}, fwd_hooks=hooks[:1])


@pytest.mark.slow
def test_words_of_a_chat_that_is_not_the_classs_own_are_refused() -> None:
    made, found = tiny_video("hunyuan_video"), []
    model = HookedDiffusion(made.pipe)
    hook = (Site("hook_text_emb", branch="cond"), lambda _value, hook: found.append(hook.words))
    template = {"template": "{}", "crop_start": 0}
    with pytest.raises(WordError, match="given another prompt_template= than the class's own"):
        model.run_with_hooks(**made.settings, prompt_template=template, fwd_hooks=[hook])
    made.pipe.tokenizer.padding_side = "left"
    try:
        with pytest.raises(WordError, match=r"pads on the left.*padding_side = .right"):
            model.words(PROMPT, "cat")
    finally:
        made.pipe.tokenizer.padding_side = "right"
    assert not found and model.words(PROMPT, "cat")


@pytest.mark.slow
def test_words_in_a_stream_of_three_kinds_of_text_are_refused() -> None:
    made = tiny_video("hunyuan_video_15")
    model = HookedDiffusion(made.pipe)
    with pytest.raises(WordError, match="HunyuanVideo15Pipeline: its text stream joins an image"):
        model.words(PROMPT, "cat")
    site = Site(model.text_pattern_sites()[0].name, key="cat")
    with pytest.raises(WordError, match="cannot be told"):
        model.run_with_hooks(**made.settings, fwd_hooks=[(site, lambda _value, hook: None)])


@pytest.mark.slow
def test_a_guiders_further_evaluations_are_refused() -> None:
    from diffusers.guiders import ClassifierFreeGuidance

    class Skipping(ClassifierFreeGuidance):
        """Names its evaluations as skip-layer guidance does, which does not know these blocks."""

        _input_predictions = ["pred_cond", "pred_cond_skip"]  # noqa: RUF012 (a list is demanded)

    made = fresh_video(hunyuan_video_15)
    made.pipe.guider = Skipping()
    model = HookedDiffusion(made.pipe)
    with pytest.raises(EngineError, match="fills its prediction 'pred_cond_skip' with other"):
        model.run_with_cache(**made.settings, names_filter="hook_text_emb")


@pytest.mark.slow
def test_packed_videos_need_their_size() -> None:
    made = tiny_video("ltx_video")
    model = HookedDiffusion(made.pipe)
    latents = latents_of(model(**made.settings))
    with pytest.raises(RunError, match="of 18 tokens do not make frames of None x None pixels"):
        model.decode_latents(latents)
    with pytest.raises(RunError, match=r"7 frames were given; .* give 1 or 9"):
        model.encode_image(list(torch.rand(7, 3, *made.size)))


@pytest.mark.slow
def test_the_context_of_cross_attention_is_the_text_without_the_image() -> None:
    made, name = tiny_video("wan_i2v"), "blocks.0.cross_attn.hook_context"
    model, found = HookedDiffusion(made.pipe), {}
    for prompt in (PROMPT, PROMPT.replace("cat", "dog")):
        settings = made.settings | {"prompt": prompt, "num_inference_steps": 1}
        out, cache = model.run_with_cache(**settings, names_filter=name)
        found[prompt] = cache[name][0]
    first, second = found.values()
    rows = (first != second).any(-1)[0].nonzero().flatten().tolist()
    assert first.shape == (1, 512, 32) and model.words(PROMPT, "cat") == tuple(rows)
    back = [
        (
            "blocks.*.cross_attn.hook_context",
            lambda value, hook: found[PROMPT] if hook.branch == "cond" else None,
        )
    ]
    patched = latents_of(model.run_with_hooks(**settings, fwd_hooks=back))
    del settings["prompt"]
    assert not torch.equal(patched, latents_of(out))
    assert torch.equal(patched, latents_of(model(PROMPT, **settings)))


@pytest.mark.slow
def test_kandinsky_cuts_long_prompts_in_a_way_of_its_own() -> None:
    made = tiny_video("kandinsky5")
    model, prompt = HookedDiffusion(made.pipe), "cat " * 30 + "dog"
    with pytest.raises(WordError, match="is too long for Kandinsky5T2VPipeline, which takes char"):
        model.words(prompt, "dog", max_sequence_length=24)
    assert model.words(prompt, "dog", max_sequence_length=60)


@pytest.mark.exhaustive
def test_cosmos_2_makes_an_image_from_latents_with_sigmas_above_1() -> None:
    pipe = others.cosmos2_image()
    pipe.set_progress_bar_config(disable=True)
    model, seen = HookedDiffusion(pipe), set()
    given = {"negative_prompt": "blurry video", "num_inference_steps": 3, "height": 32, "width": 48}
    given |= {"max_sequence_length": 24, "output_type": "pt", "guidance_scale": 1.0}
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **given).images
    hooks = [("**", lambda _value, hook: seen.add((hook.name, hook.timestep, hook.sigma)))]
    out = model.run_with_hooks(PROMPT, seed=0, fwd_hooks=hooks, **given)
    assert torch.equal(out.images, expected)
    assert {name for name, _, _ in seen} == set(model.points)
    assert {time for _, time, _ in seen} == set(pipe.scheduler.timesteps.tolist())
    assert {sigma for _, _, sigma in seen} == set(pipe.scheduler.sigmas[:3].tolist())
    decoded = model.decode_latents(latents_of(out), output_type="pt")
    # The guardrail has its images in 256 steps.
    torch.testing.assert_close(decoded[:, 0], expected, rtol=0.0, atol=1 / 255)
    names = ["hook_sample", "hook_noise_pred", "hook_pred_x0", "hook_guided_pred"]
    _, cache = model.run_with_cache(PROMPT, names_filter=names, **given)
    for step, sigma in enumerate(pipe.scheduler.sigmas[:3].tolist()):
        at = cache.at(step=step)
        share = sigma / (sigma + 1)
        clean = (1 - share) * at["hook_sample"] - share * at["hook_noise_pred"]
        torch.testing.assert_close(at["hook_pred_x0"], clean, rtol=1e-3, atol=1e-3)
        found = model.denoise(at["hook_sample"], prompt=PROMPT, step=step, **given)
        assert torch.equal(found.guided, at["hook_guided_pred"])
    with pytest.raises(EngineError, match="has sigmas above 1"):
        model.add_noise(latents_of(out), noise_level=0.5)
    with pytest.raises(EngineError, match="has sigmas above 1"):
        model.denoise(latents_of(out), prompt=PROMPT, noise_level=0.5, **given)
    swapped = [
        model.run_with_cache(prompt, names_filter="hook_text_emb", **given)[1]["hook_text_emb"][0]
        for prompt in (PROMPT, PROMPT.replace("cat", "dog"))
    ]
    rows = (swapped[0] != swapped[1]).any(-1)[0].nonzero().flatten().tolist()
    assert model.words(PROMPT, "cat", max_sequence_length=24) == tuple(rows)


@pytest.mark.exhaustive
def test_a_second_segment_of_a_video_is_refused() -> None:
    made = tiny_video("wan_animate")
    model = HookedDiffusion(made.pipe)
    longer = {name: made.settings[name][:1] * 17 for name in ("pose_video", "face_video")}
    with pytest.raises(EngineError, match="goes through its schedule once more in the same run"):
        model.run_with_cache(**made.settings | longer, names_filter="hook_latents")


@pytest.mark.exhaustive
def test_steps_of_cosmos_1_are_refused() -> None:
    pipe = others.cosmos1()
    pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 2, "height": 32, "width": 48, "num_frames": 9}
    given |= {"max_sequence_length": 24, "output_type": "latent"}
    model = HookedDiffusion(pipe)
    with pytest.raises(EngineError, match="CosmosTextToWorldPipeline sets its EDMEulerScheduler"):
        model.run_with_cache(PROMPT, names_filter="hook_latents", **given)


@pytest.mark.slow
def test_ltx2s_video_and_sound_read_each_other_between_two_norms() -> None:
    denoiser, inputs = tiny_denoiser("ltx2")
    block: Any = denoiser.get_submodule("transformer_blocks.1")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, args: seen.update({name: args[0].clone()})

    norms = ("audio_to_video_norm", "norm3", "video_to_audio_norm", "audio_norm3")
    handles = [getattr(block, name).register_forward_pre_hook(keep(name)) for name in norms]
    model = HookedDiffusion(denoiser)
    names = {"img": "audio_to_video_attn", "audio": "video_to_audio_attn"}
    updates = [f"blocks.1.{stream}.hook_{name}_update" for stream, name in names.items()]
    patterns = [f"blocks.1.{name}.hook_pattern" for name in names.values()]
    with torch.no_grad(), model.caching([*updates, *patterns]) as cache:
        denoiser(**inputs)
    for handle in handles:
        handle.remove()
    for update, (before, after) in zip(updates, (norms[:2], norms[2:]), strict=True):
        torch.testing.assert_close(seen[before] + cache[update][0], seen[after])
        assert cache[update][0].abs().max() > 0.1
    assert [tuple(cache[name][0].shape) for name in patterns] == [(2, 2, 48, 5), (2, 2, 5, 48)]


def test_ltx2_refuses_what_is_not_described() -> None:
    denoiser: Any = tiny_denoiser("ltx2")[0]
    with pytest.raises(RunError, match=r"denoises something beside the image .audio_hidden_states"):
        HookedDiffusion(denoiser).denoise(torch.zeros(1, 48, 4), prompt="a", step=0)
    config = {key: one for key, one in denoiser.config.items() if key[0] != "_"}
    gated = type(denoiser)(**(config | {"gated_attn": True, "audio_gated_attn": True}))
    with pytest.raises(UnsupportedModelError, match=r"LTX-2\.3 is not described"):
        HookedDiffusion(gated)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"enable_text_cross_attention_dual": True}, r"TransformerBlock has a cross-attention"),
        ({"enable_text_cross_attention_single": True}, r"SingleTransformerBlock has a cross-att"),
        ({"num_decoder_layers": 1}, r"the last 1 blocks .* are a decoder.*num_decoder_layers=0"),
    ],
)
def test_motif_video_with_parts_that_are_not_described_is_refused(
    more: dict[str, Any], message: str
) -> None:
    from diffusers import MotifVideoTransformer3DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "rope_axes_dim": (4, 2, 2)}
    model = MotifVideoTransformer3DModel(num_layers=1, num_single_layers=2, **sizes, **more)
    with pytest.raises(UnsupportedModelError, match=message):
        HookedDiffusion(model)
