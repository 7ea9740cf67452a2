"""Head relevance on tiny pipelines of new families, against queries and keys kept by hand.

Queries are kept at the attention product itself, in runs of the plain pipeline. Keys of words are
kept there, too, in runs whose whole prompt is the word; in models with joint attention, where they
change from block to block and step to step, they are those of concept streams (whose own tests
compare them with blocks that are run again).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import HeadRelevance, head_relevance, steer_word, weaken_words
from diffusion_lens.analyses.concept_steering import rescale_word
from diffusion_lens.analyses.head_relevance import text_heads
from tests.analyses.test_on_every_family import PROMPT, settings, shared
from tests.pipelines import latents_of
from tests.tiny_pipelines.families import HEIGHT, WIDTH

WORDS = {"Animal": "dog", "Colour": "blue", "Material": "wood"}
CONCEPTS = {name: [word] for name, word in WORDS.items()}
CROSSED = {"pixart": "transformer_blocks.{}.attn2", "wan": "blocks.{}.attn2"}
CROSSED["ltx_video"] = "transformer_blocks.{}.attn2"
JOINT = {"qwen_image": "txt", "flux2": "txt", "z_image": "img"}
"""Families with joint attention, and the stream that comes first in the sequence."""

FIRST = "blocks.0.{}."
SLOW = ("pixart", "z_image", "ltx_video", "flux2")
FAMILIES = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in (*CROSSED, *JOINT)
]

pytestmark = pytest.mark.filterwarnings("ignore")


def run_of(name: str) -> dict[str, Any]:
    return {**settings(name), "output_type": "latent"}


def counted(name: str) -> HeadRelevance:
    given: dict[str, Any] = {"concepts": CONCEPTS, "seed": 0, "show_progress": False}
    return head_relevance(shared(name), PROMPT, **given, **run_of(name))


@contextmanager
def products_of(modules: list[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Queries and keys of every product inside some modules, axes batch, head, pos, d_head."""
    found: list[tuple[Tensor, Tensor]] = []
    inside: list[nn.Module] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def keep(query: Tensor, key: Tensor, *rest: Any, **more: Any) -> Tensor:
        if inside:
            found.append((query.clone(), key.clone()))
        return plain(query, key, *rest, **more)

    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(lambda one, _: inside.append(one)))
        handles.append(module.register_forward_hook(lambda *_: inside.clear()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", keep)
        yield found
    for handle in handles:
        handle.remove()


def attentions(name: str) -> list[nn.Module]:
    model = shared(name)
    if name in CROSSED:
        return [
            model.denoiser.get_submodule(CROSSED[name].format(at)) for at in range(model.n_blocks)
        ]
    return [
        model.denoiser.get_submodule(model.points[f"blocks.{at}.attn.img.hook_q"].module)
        for at in range(model.n_blocks)
    ]


def kept_in_a_run(name: str, prompt: str) -> list[tuple[Tensor, Tensor]]:
    model, run = shared(name), run_of(name)
    run.setdefault("generator", torch.Generator().manual_seed(0))
    with products_of(attentions(name)) as found, torch.no_grad():
        pipe: Any = model.pipe
        pipe(prompt=prompt, **run)
    return found


def image_queries(name: str) -> list[Tensor]:
    """Of every step and block, one after the other, axes head, pos, d_head."""
    found = []
    for query, _ in kept_in_a_run(name, PROMPT):
        query = query[0].double()
        if name in JOINT:
            grid = HEIGHT * WIDTH
            query = query[:, :grid] if JOINT[name] == "img" else query[:, -grid:]
        found.append(query)
    return found


def word_keys(name: str) -> list[list[Tensor]]:
    """For each step and block, of each word, axes head, row, d_head."""
    model, run = shared(name), run_of(name)
    length = run.get("max_sequence_length")
    if name in CROSSED:
        kept = [kept_in_a_run(name, word) for word in WORDS.values()]
        places = [
            list(model.words(word, word, max_sequence_length=length)) for word in WORDS.values()
        ]
        return [
            [keys[0][:, rows].double() for (_, keys), rows in zip(call, places, strict=True)]
            for call in zip(*kept, strict=True)
        ]
    layers = {key: run[key] for key in ("text_encoder_out_layers",) if key in run}
    with model.concept_streams(
        list(WORDS.values()),
        max_sequence_length=length,
        encoder_settings=layers,
        blocks=range(model.n_blocks),
    ) as streams:
        site = "blocks.*.attn.concept.hook_k"
        _, cache = model.run_with_cache(PROMPT, names_filter=site, seed=0, **run)
    steps = len(cache.steps)
    found = []
    for step in range(steps):
        for block in range(model.n_blocks):
            keys = cache[f"blocks.{block}.attn.concept.hook_k"][step, 0].transpose(0, 1).double()
            found.append([keys[:, rows] for rows in streams.rows.values()])
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_the_votes_of_queries_and_keys_kept_by_hand(name: str) -> None:
    found, model = counted(name), shared(name)
    votes = torch.zeros(len(WORDS), len(found.heads))
    calls = list(zip(image_queries(name), word_keys(name), strict=True))
    blocks = model.n_blocks
    heads = calls[0][0].shape[0]
    assert len(found.heads) == blocks * heads and len(calls) % blocks == 0
    for number, (queries, words) in enumerate(calls):
        joined = torch.cat(words, 1)
        scores = (queries @ joined.mT / queries.shape[-1] ** 0.5).softmax(-1).mean(-2)
        parts = scores.split([one.shape[1] for one in words], -1)
        shares = torch.stack([part.mean(-1) for part in parts])
        at = number % blocks * heads
        for head, best in enumerate(shares.argmax(0).tolist()):
            votes[best, at + head] += 1
    assert found.votes is not None
    assert torch.equal(found.votes.sum(0).float(), votes)
    total = votes.sum(1, keepdim=True)
    by_hand = votes * len(found.heads) / total.clamp_min(1)
    torch.testing.assert_close(found.vectors.float(), by_hand)


def by_hand(name: str, places: list[int], factors: dict[int, float]) -> Tensor:
    """z of the image in the first block, with the columns of some tokens scaled head by head."""
    at = FIRST.format("cross_attn" if name in CROSSED else "attn")
    names = [f"{at}hook_pattern", f"{at}img.hook_z", f"{at}txt.hook_v"]
    _, cache = shared(name).run_with_cache(
        PROMPT, names_filter=names, steps=0, seed=0, **run_of(name)
    )
    pattern, z, values = (cache[one][0] for one in names)
    if name in JOINT:
        count = values.shape[1]
        first = JOINT[name] == "txt"
        text = slice(0, count) if first else slice(-count, None)
        pattern = pattern[:, :, slice(count, None) if first else slice(0, -count), text]
    moved = pattern[..., places] @ values[:, places].transpose(1, 2)
    scale = torch.ones(pattern.shape[1])
    for head, factor in factors.items():
        scale[head] = factor
    return z + (scale[None, :, None, None].float() - 1).mul(moved).transpose(1, 2)


def first_z(name: str, hooks: Any) -> Tensor:
    """That of a run with hooks, at its first step."""
    found: list[Tensor] = []
    site = Site(FIRST.format("cross_attn" if name in CROSSED else "attn") + "img.hook_z")
    keep = (site.with_(branch="cond"), lambda value, _hook: found.append(value.clone()))
    shared(name).run_with_hooks(PROMPT, seed=0, fwd_hooks=[*hooks, keep], **run_of(name))
    return found[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_steering_and_weakening_scale_the_columns_of_words(name: str) -> None:
    model, relevance, run = shared(name), counted(name), run_of(name)
    tokens = model.prompt_tokens(PROMPT, run=Run(PROMPT, **run))
    desired = max(WORDS, key=lambda one: float(relevance.vector(one).std()))
    factors = relevance.factors(relevance.vector(desired))
    mine = {head: float(factor) for (block, head), factor in factors.items() if block == 0}
    steered = first_z(name, rescale_word(model, "cat", factors))
    expected = by_hand(name, list(tokens.find("cat")), mine)
    torch.testing.assert_close(steered, expected, rtol=1e-3, atol=1e-4)
    heads = [(0, 1), (1, 0)]
    given: dict[str, Any] = {"max_sequence_length": run.get("max_sequence_length")}
    weak = first_z(name, weaken_words(model, PROMPT, heads, factor=-2.0, **given))
    words = sorted({at for word in PROMPT.split() for at in tokens.find(word)})
    torch.testing.assert_close(weak, by_hand(name, words, {1: -2.0}), rtol=1e-3, atol=1e-4)
    image = latents_of(steer_word(model, PROMPT, "cat", relevance, desired=desired, seed=0, **run))
    assert not torch.equal(image, latents_of(model(PROMPT, seed=0, **run)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "qwen_image", "auraflow", "cogview4"])
def test_every_head_has_a_name_of_its_own(name: str) -> None:
    model: HookedDiffusion = shared(name)
    names = [head.name for head in text_heads(model)]
    assert len(set(names)) == len(names)
    assert ", layer: 0, head: 0" in names[0] and "." not in names[0]
