"""Concept streams of every family that has them, against each block run again by hand.

By hand means: plain torch hooks keep what the main pass calls each block with, and the block's own
forward runs once more with the concepts as its text and the whole image. What the library does not
do (it runs one image token) must give what this gives, in float64.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion
from diffusion_lens.architectures import architectures
from diffusion_lens.concept_streams.entering import Entrance
from diffusion_lens.errors import ConceptError, EngineError, UnsupportedModelError
from diffusion_lens.testing import tiny_denoiser

COUNT = 3
"""Concepts; no other sequence of these models is as long."""

pytestmark = pytest.mark.filterwarnings("ignore")

Calls = dict[nn.Module, dict[str, Any]]
EXACT: dict[str, Any] = {"atol": 1e-10, "rtol": 1e-10}


def linear(denoiser: Any, rows: Tensor, _calls: Calls) -> Tensor:
    return denoiser.context_embedder(rows)


def patched(denoiser: Any, rows: Tensor, _calls: Calls) -> Tensor:
    return denoiser.patch_embed.text_proj(rows)


def projected(denoiser: Any, rows: Tensor, _calls: Calls) -> Tensor:
    return denoiser.text_proj(rows)


def joys(denoiser: Any, rows: Tensor, _calls: Calls) -> Tensor:
    return denoiser.condition_embedder.text_embedder(rows)


def qwens(denoiser: Any, rows: Tensor, _calls: Calls) -> Tensor:
    return denoiser.txt_in(denoiser.txt_norm(rows))


def normed(denoiser: Any, rows: Tensor, _calls: Calls) -> Tensor:
    return denoiser.context_embedder(denoiser.context_embedder_norm(rows))


def refined(denoiser: Any, rows: Tensor, calls: Calls) -> Tensor:
    given = calls[denoiser.context_embedder]
    return denoiser.context_embedder(rows, given["timestep"], None)


def fused(denoiser: Any, rows: Tensor, _calls: Calls) -> Tensor:
    return denoiser.txt_in(denoiser.text_fusion(rows, None))


def luminas(denoiser: Any, rows: Tensor, calls: Calls) -> Tensor:
    rows = denoiser.time_caption_embed.caption_embedder(rows)
    for layer in denoiser.context_refiner:
        first = calls[layer]["image_rotary_emb"][:, :1]
        rows = layer(rows, None, first.expand(-1, COUNT, -1))
    return rows


def z_images(denoiser: Any, rows: Tensor, calls: Calls) -> Tensor:
    rows = denoiser.cap_embedder(rows)
    for layer in denoiser.context_refiner:
        first = calls[layer]["freqs_cis"][:, :1]
        rows = layer(rows, None, first.expand(-1, COUNT, -1))
    return rows


def none(arguments: dict[str, Any], _text: int) -> dict[str, Any]:
    """The image alone has rotary embeddings, or nothing has."""
    return {}


def text_first(arguments: dict[str, Any], text: int) -> dict[str, Any]:
    cos, sin = arguments["image_rotary_emb"]
    kept = [0] * COUNT + list(range(text, len(cos)))
    return {"image_rotary_emb": (cos[kept], sin[kept])}


def apart(arguments: dict[str, Any], _text: int) -> dict[str, Any]:
    img, txt = arguments["image_rotary_emb"]
    return {"image_rotary_emb": (img, txt[[0] * COUNT])}


def batched(name: str, first: str) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    def rotary(arguments: dict[str, Any], text: int) -> dict[str, Any]:
        value = arguments[name]
        image = value.shape[1] - text
        if first == "txt":
            return {name: value[:, [0] * COUNT + list(range(text, text + image))]}
        return {name: value[:, [*range(image)] + [image] * COUNT]}

    return rotary


@dataclass(frozen=True)
class Family:
    """What a family does, read from the code of diffusers.

    Attributes:
        called: Its name in tables.
        enter: Brings text embeddings to the width of the stream.
        rotary: Rotary arguments of a block in which every concept stands at the first text token.
        first: The stream that comes first in the joint sequence.
        text: Text tokens of the tiny model's call.
        lists: Attributes with the blocks, in order of execution.
        refined: Whether concepts mix before the first block.
        double: Blocks that treat text apart; None for all.
    """

    called: str
    enter: Callable[[Any, Tensor, Calls], Tensor]
    rotary: Callable[[dict[str, Any], int], dict[str, Any]]
    first: str = "txt"
    text: int = 7
    lists: tuple[str, ...] = ("transformer_blocks",)
    refined: bool = False
    double: int | None = None


BOTH = ("transformer_blocks", "single_transformer_blocks")
FAMILIES = {
    "flux2": Family("Flux.2", linear, text_first, lists=BOTH, double=2),
    "qwen_image": Family("Qwen-Image", qwens, apart),
    "chroma": Family("Chroma", linear, text_first, lists=BOTH, double=2),
    "bria": Family("Bria 3", linear, text_first, lists=BOTH, double=2),
    "longcat": Family("LongCat-Image", linear, text_first, lists=BOTH, double=2),
    "ovis": Family("Ovis-Image", normed, text_first, lists=BOTH, double=2),
    "hunyuan_video": Family(
        "HunyuanVideo", refined, none, "img", lists=BOTH, refined=True, double=2
    ),
    "motif_video": Family("Motif-Video", linear, none, "img", lists=BOTH, double=2),
    "hunyuan_image": Family(
        "HunyuanImage 2.1", refined, none, "img", lists=BOTH, refined=True, double=2
    ),
    "auraflow": Family(
        "AuraFlow",
        linear,
        none,
        lists=("joint_transformer_blocks", "single_transformer_blocks"),
        double=2,
    ),
    "cogview4": Family("CogView 4", patched, none),
    "cogview3_plus": Family("CogView 3+", patched, none),
    "consisid": Family("ConsisID", patched, none),
    "lumina2": Family(
        "Lumina 2", luminas, batched("image_rotary_emb", "txt"), lists=("layers",), refined=True
    ),
    "z_image": Family(
        "Z-Image", z_images, batched("freqs_cis", "img"), "img", 32, ("layers",), refined=True
    ),
    "easy_animate": Family("EasyAnimate", projected, none),
    "joy_image_edit": Family("JoyImage-Edit", joys, none, "img", lists=("double_blocks",)),
    "joy_image_edit_plus": Family(
        "JoyImage-Edit Plus", joys, none, "img", lists=("double_blocks",)
    ),
    "krea2": Family("Krea 2", fused, text_first, refined=True),
}
FAST = ("flux2",)
SLOW = ("qwen_image", "z_image", "chroma", "auraflow", "hunyuan_video", "lumina2", "krea2")
"""The others are copies of these, and exhaustive."""


def mark(name: str) -> Any:
    """When a family's tests run."""
    rare = pytest.mark.slow if name in SLOW else pytest.mark.exhaustive
    return pytest.param(name, marks=() if name in FAST else rare)


EVERY = [mark(name) for name in FAMILIES]


@functools.cache
def subject(name: str) -> tuple[HookedDiffusion, dict[str, Any]]:
    denoiser, inputs = tiny_denoiser(name, dtype=torch.float64)
    if (
        name == "motif_video"
    ):  # of the timestep's features it casts only what runs in half precision
        embedder = denoiser.get_submodule("time_text_embed.timestep_embedder")
        embedder.register_forward_pre_hook(lambda _module, args: (args[0].double(),))
    return HookedDiffusion(denoiser), inputs


def predict(name: str) -> Tensor:
    model, inputs = subject(name)
    with torch.no_grad():
        out = model.denoiser(**inputs)
    found = out[0] if isinstance(out, tuple) else out.sample
    return torch.stack(found) if isinstance(found, list) else found


def text_of(name: str) -> Tensor:
    model, inputs = subject(name)
    given = inputs[model.spec.text]
    return torch.stack(given) if isinstance(given, list) else given


def concepts_of(name: str) -> Tensor:
    """Random embeddings, axes batch (of 1), concept and what the text's have."""
    generator = torch.Generator().manual_seed(7)
    shape = (1, COUNT, *text_of(name).shape[2:])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def blocks_of(name: str) -> list[nn.Module]:
    denoiser: Any = subject(name)[0].denoiser
    return [block for listed in FAMILIES[name].lists for block in getattr(denoiser, listed)]


def text_tokens(name: str) -> int:
    registers = getattr(subject(name)[0].denoiser, "register_tokens", None)
    return FAMILIES[name].text + (0 if registers is None else registers.shape[1])


@contextmanager
def calls_kept(modules: list[nn.Module]) -> Iterator[Calls]:
    """What each module is called with, by name, while the context is open."""
    found: Calls = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        found[module] = dict(bound.arguments)

    handles = [one.register_forward_pre_hook(keep, with_kwargs=True) for one in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def again(name: str, block: nn.Module, given: dict[str, Any], rows: Tensor) -> Tensor:
    """A block's output for concepts that stand where its text stood."""
    family, text = FAMILIES[name], text_tokens(name)
    changed = dict(given) | {key: None for key in given if "mask" in key}
    changed |= family.rotary(given, text)
    beyond = changed.pop("args", ())
    if changed.get("encoder_hidden_states") is not None:
        changed["encoder_hidden_states"] = rows
        both: Any = block.forward(**changed)
        return next(one for one in both if one.shape[1] == COUNT)
    assert not beyond
    key = "x" if "x" in changed else "hidden_states"
    whole: Tensor = given[key]
    image = whole[:, text:] if family.first == "txt" else whole[:, : whole.shape[1] - text]
    parts = [rows, image] if family.first == "txt" else [image, rows]
    found: Any = block.forward(**{**changed, key: torch.cat(parts, 1)})
    return found[:, :COUNT] if family.first == "txt" else found[:, -COUNT:]


@contextmanager
def products_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, ...]]]:
    """Queries, keys, values and outputs of every attention product, axes batch, head, pos."""
    found: list[tuple[Tensor, ...]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def keep(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
        output = plain(query, key, value, *rest, **more)
        found.append((query, key, value, output))
        return output

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", keep)
        yield found


def test_every_family_with_concept_streams_is_here() -> None:
    described = {spec.family for spec in architectures().values() if spec.concepts is not None}
    # These three have tests of their own, against the published code's vectors.
    published = {"Flux.1", "SD3 / SD3.5", "CogVideoX"}
    assert described == {family.called for family in FAMILIES.values()} | published


@pytest.mark.parametrize("name", EVERY)
def test_the_prediction_keeps_its_bits(name: str) -> None:
    model, _ = subject(name)
    plain = predict(name)
    with model.concept_streams(concepts_of(name), blocks=range(model.n_blocks)) as streams:
        names = {one for one in model.hook_names() if ".concept." in one}
        fired: dict[str, int] = {}

        def disturb(value: Tensor, hook: Any) -> Tensor:
            fired[hook.name] = fired.get(hook.name, 0) + 1
            return value + 1

        with model.hooks([("**.concept.**", disturb)]):
            found = predict(name)
    assert streams.blocks == tuple(range(model.n_blocks))
    assert torch.equal(found, plain)
    assert fired == dict.fromkeys(names, 1)


@pytest.mark.parametrize("name", EVERY)
def test_blocks_run_again_by_hand_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, (model, _) = FAMILIES[name], subject(name)
    denoiser: Any = model.denoiser
    blocks, concepts = blocks_of(name), concepts_of(name)
    refiners = [*getattr(denoiser, "context_refiner", ())]
    refiners += [denoiser.context_embedder] if hasattr(denoiser, "context_embedder") else []
    with calls_kept([*blocks, *refiners]) as calls:
        with (
            model.concept_streams(concepts, blocks=range(model.n_blocks)),
            model.caching("**.concept.**") as cache,
        ):
            predict(name)
        rows = concepts.expand(len(text_of(name)), *concepts.shape[1:])
        with torch.no_grad():
            rows = family.enter(denoiser, rows, dict(calls))
    for number, block in enumerate(blocks):
        at = f"blocks.{number}."
        torch.testing.assert_close(cache[f"{at}concept.hook_resid_pre"][0], rows, **EXACT)
        with products_kept(monkeypatch) as products, torch.no_grad():
            rows = again(name, block, calls[block], rows)
        torch.testing.assert_close(cache[f"{at}concept.hook_resid_post"][0], rows, **EXACT)
        ((query, key, _, output),) = products
        mine = slice(0, COUNT) if family.first == "txt" else slice(-COUNT, None)
        z = output[:, :, mine].transpose(1, 2)
        torch.testing.assert_close(cache[f"{at}attn.concept.hook_z"][0], z, **EXACT)
        scores = query[:, :, mine] @ key.mT / query.shape[-1] ** 0.5
        pattern = cache[f"{at}attn.concept.hook_pattern"][0]
        torch.testing.assert_close(pattern, scores.softmax(-1), **EXACT)


@pytest.mark.parametrize(
    "name", [mark(name) for name, family in FAMILIES.items() if not family.refined]
)
def test_a_concept_that_is_a_token_of_the_prompt_asks_as_that_token_does(name: str) -> None:
    """Queries are the same, and so is the attention to the image, of which the rest is a share."""
    model, _ = subject(name)
    token, ahead = 4, text_tokens(name) - FAMILIES[name].text
    embeddings = text_of(name)[:, token : token + 1]
    position = token + ahead if FAMILIES[name].rotary is not none else None
    points = ["attn.txt.hook_q", "attn.concept.hook_q", "attn.hook_pattern"]
    points += ["attn.concept.hook_pattern", "txt.hook_resid_pre", "concept.hook_resid_pre"]
    with (
        model.concept_streams(embeddings, position=position),
        model.caching([f"blocks.0.{point}" for point in points]) as cache,
    ):
        predict(name)
    values = {point: cache[f"blocks.0.{point}"][0] for point in points}
    at, first = token + ahead, FAMILIES[name].first
    text = text_tokens(name)
    stream = values["txt.hook_resid_pre"][:, at : at + 1]
    torch.testing.assert_close(values["concept.hook_resid_pre"], stream, **EXACT)
    query = values["attn.txt.hook_q"][:, at : at + 1]
    torch.testing.assert_close(values["attn.concept.hook_q"], query, **EXACT)
    row = at if first == "txt" else values["attn.hook_pattern"].shape[-1] - text + at
    theirs = values["attn.hook_pattern"][:, :, row]
    theirs = theirs[..., text:] if first == "txt" else theirs[..., :-text]
    mine = values["attn.concept.hook_pattern"][:, :, 0]
    mine = mine[..., 1:] if first == "txt" else mine[..., :-1]
    shares = [part / part.sum(-1, keepdim=True) for part in (mine, theirs)]
    torch.testing.assert_close(*shares, **EXACT)


@pytest.mark.parametrize("name", EVERY)
def test_single_blocks_carry_concepts_only_where_they_are_named(name: str) -> None:
    model, _ = subject(name)
    double = FAMILIES[name].double
    with model.concept_streams(concepts_of(name)) as streams:
        assert streams.blocks == tuple(range(model.n_blocks if double is None else double))


@pytest.mark.slow
def test_positions_are_those_of_the_text_token_that_was_named() -> None:
    model, _ = subject("flux2")
    name, found = "blocks.0.attn.concept.hook_q", []
    for position in (None, 0, 6, -1):
        with (
            model.concept_streams(concepts_of("flux2"), position=position),
            model.caching(name) as cache,
        ):
            predict("flux2")
        found.append(cache[name])
    assert torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
    assert not torch.allclose(found[0], found[2])


def test_a_position_that_the_text_has_not_is_refused() -> None:
    model, _ = subject("flux2")
    with (
        pytest.raises(ConceptError, match=r"position=7 names a text token.* has 7 tokens"),
        model.concept_streams(concepts_of("flux2"), position=7),
        model.caching("blocks.0.attn.concept.hook_q"),
    ):
        predict("flux2")


@pytest.mark.slow
def test_a_position_where_the_text_has_none_is_refused() -> None:
    model, _ = subject("cogview4")
    with (
        pytest.raises(ConceptError, match=r"position=1 was given, but .* has no rotary"),
        model.concept_streams(concepts_of("cogview4"), position=1),
    ):
        pass


REFUSED = {
    "wan": r"text enters by cross-attention only.*head_relevance",
    "ltx_video": r"text enters by cross-attention only.*not in the prompt",
    "prx": r"its text gives keys and values and has no queries of its own",
    "hidream": r"the last third of every block's text is new from a layer of Llama.*head_patterns",
    "bria_fibo": r"half of every block's text is new",
    "glm_image": r"holds the glyphs of quoted words",
    "hunyuan_video_15": r"three kinds of text are marked and joined",
    "mochi": r"takes a sample's tokens by a mask",
    "ernie_image": r"what its text passes before it meets the image is not described",
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one == "wan" else pytest.mark.slow) for one in REFUSED]
)
def test_other_families_say_why_and_what_to_call(name: str) -> None:
    model = HookedDiffusion(tiny_denoiser(name)[0])
    with (
        pytest.raises(UnsupportedModelError, match=REFUSED[name] + r".*text_pattern_sites|$^"),
        model.concept_streams(torch.zeros(1, 1, 4)),
    ):
        pass


def test_every_other_family_with_a_text_stream_says_why_it_has_none() -> None:
    silent = {
        spec.family
        for spec in architectures().values()
        if spec.concepts is None and not spec.without_concepts
    }
    crossed = {
        "SD 1.x / 2.x / XL",
        "PixArt",
        "HunyuanDiT",
        "Sana",
        "SANA-Video",
        "LTX-Video",
        "LTX-2",
        "Allegro",
        "Cosmos",
    }
    crossed |= {
        "Kandinsky 5",
        "Wan 2.1 / 2.2",
        "Wan-Animate",
        "Wan VACE",
        "ChronoEdit",
        "SkyReels-V2",
    }
    assert silent == crossed


@pytest.mark.slow
@pytest.mark.parametrize("pooled", ["zeros", torch.ones(1, 20, dtype=torch.float64)])
def test_hunyuan_videos_modulation_takes_pooled_text_of_their_own(pooled: Any) -> None:
    model, inputs = subject("hunyuan_video")
    denoiser: Any = model.denoiser
    block = denoiser.transformer_blocks[0]
    with (
        calls_kept([block]) as calls,
        model.concept_streams(concepts_of("hunyuan_video"), pooled=pooled),
        model.caching("blocks.0.concept.hook_resid_*") as cache,
    ):
        predict("hunyuan_video")
    vector = torch.zeros(1, 20, dtype=torch.float64) if isinstance(pooled, str) else pooled
    with torch.no_grad():
        temb, _ = denoiser.time_text_embed(
            inputs["timestep"], vector.expand(2, -1), inputs["guidance"]
        )
        # The image keeps its own modulation; only the text's norm is told of another.
        handle = block.norm1_context.register_forward_pre_hook(
            lambda _module, args, kwargs: (args, {**kwargs, "emb": temb}), with_kwargs=True
        )
        rows = cache["blocks.0.concept.hook_resid_pre"][0]
        expected = again("hunyuan_video", block, calls[block], rows)
        handle.remove()
    assert not torch.allclose(temb, calls[block]["temb"])
    torch.testing.assert_close(cache["blocks.0.concept.hook_resid_post"][0], expected, **EXACT)


@pytest.mark.slow
def test_qwens_references_with_a_timestep_of_their_own_stay_the_images() -> None:
    """Qwen-Image-Edit tells image tokens apart by an index, and has the batch of gates twice."""
    from diffusers import QwenImageTransformer2DModel

    alike, inputs = subject("qwen_image")
    config = {key: one for key, one in alike.denoiser.config.items() if not key.startswith("_")}
    denoiser: Any = QwenImageTransformer2DModel(**{**config, "zero_cond_t": True}).double().eval()
    denoiser.load_state_dict(alike.denoiser.state_dict())
    given = {**inputs, "img_shapes": [[(1, 2, 6), (1, 2, 6)]] * 2}
    with torch.no_grad():
        plain = denoiser(**given).sample
    model = HookedDiffusion(denoiser)
    with (
        calls_kept([*denoiser.transformer_blocks]) as calls,
        model.concept_streams(concepts_of("qwen_image")),
        model.caching("**.concept.hook_resid_*") as cache,
        torch.no_grad(),
    ):
        assert torch.equal(denoiser(**given).sample, plain)
    for number, block in enumerate(denoiser.transformer_blocks):
        rows = cache[f"blocks.{number}.concept.hook_resid_pre"][0]
        with torch.no_grad():
            expected = again("qwen_image", block, calls[block], rows)
        found = cache[f"blocks.{number}.concept.hook_resid_post"][0]
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["flux2", "z_image", "krea2", "hunyuan_video"])
def test_the_prediction_keeps_its_bits_in_half_precision(name: str, dtype: torch.dtype) -> None:
    denoiser, inputs = tiny_denoiser(name, dtype=dtype)
    with torch.no_grad():
        plain = denoiser(**inputs, return_dict=False)[0]
    model = HookedDiffusion(denoiser)
    concepts = concepts_of(name).to(dtype)
    finite: list[bool] = []
    see = ("**.concept.**", lambda value, _hook: finite.append(bool(value.isfinite().all())))
    with (
        model.concept_streams(concepts, blocks=range(model.n_blocks)),
        model.hooks([see]),
        torch.no_grad(),
    ):
        found = denoiser(**inputs, return_dict=False)[0]
    assert finite and all(finite)
    pairs = zip(plain, found, strict=True)  # a list, or the batch
    assert all(torch.equal(*pair) for pair in pairs)


def test_text_that_has_not_come_in_through_its_modules_is_refused() -> None:
    model, _ = subject("flux2")
    assert model.spec.concepts is not None
    entrance = Entrance(model.denoiser, model.spec.concepts)
    with pytest.raises(EngineError, match="Linear, through which concepts enter with the text"):
        entrance.run(concepts_of("flux2"), 0)
