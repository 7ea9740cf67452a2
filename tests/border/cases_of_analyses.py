"""The analyses and their results, with arguments that they take."""

from __future__ import annotations

import torch

from diffusion_lens import analyses
from diffusion_lens.analyses import patching
from diffusion_lens.analyses.ordered_weakening import published_counts
from tests.border.world import (
    CONCEPTS,
    PROMPT,
    Add,
    World,
    Z,
    zeros,
)


def of_maps(add: Add, world: World) -> None:
    maps, concepts = world.maps, world.concept_maps
    level = {name: value for name, value in world.one.items() if name != "num_inference_steps"}
    add(
        "attention_maps",
        lambda **given: analyses.attention_maps(**given, **world.one),
        model=world.unet,
        prompts=PROMPT,
        words=None,
        foreign=(),
        heads=None,
        blocks=None,
        branch="cond",
        preset=None,
        aggregate=None,
        upsample=None,
        clamp=None,
        steps=None,
        foreign_among="prompt",
        keep=(),
        size=None,
        seed=0,
    )
    add(
        "attention_maps, image",
        lambda **given: analyses.attention_maps(world.unet, PROMPT, **given, **level),
        image=world.image,
        noise_level=0.5,
        num_samples=1,
    )
    add("AttentionMaps.word", maps.word, word="circle", occurrence=None, sample=None)
    add("AttentionMaps.mask", maps.mask, threshold=0.4, word="circle", size=None, absolute=False)
    add("AttentionMaps.overlay", maps.overlay, words=None, sample=0, images=None)
    add("AttentionMaps.plot", maps.plot, word=None, sample=0, images=None)
    add("AttentionMaps.load", analyses.AttentionMaps.load, folder=world.folder / "maps")
    add("AttentionMaps.save", maps.save, folder=world.folder / "maps")
    add(
        "concept_attention",
        lambda **given: analyses.concept_attention(**given, **world.one_mm),
        model=world.mmdit,
        prompts=PROMPT,
        concepts=["red", "circle"],
        preset="paper",
        space=None,
        softmax_over=None,
        blocks=None,
        steps=None,
        keep=(),
        frames="keep",
        branch="cond",
        seed=0,
        attend=("concepts", "image"),
        num_samples=1,
    )
    add("ConceptMaps.of", concepts.of, concept="red")
    add("ConceptMaps.overlay", concepts.overlay, concept="red", image=None)
    add("ConceptMaps.plot", concepts.plot, sample=0, image=None)
    shape = {"concepts": torch.zeros(1, 2, 4), "image": torch.zeros(1, 9, 4)}
    add(
        "concept_scores", analyses.concept_scores, **shape, softmax_over="concepts", temperature=1.0
    )


def of_heads(add: Add, world: World) -> None:
    unet, relevance, one = world.unet, world.relevance, world.one
    vector = relevance.vector("Colour")
    add(
        "head_relevance",
        lambda **given: analyses.head_relevance(**given, **one),
        model=unet,
        prompts=[PROMPT],
        concepts=CONCEPTS,
        include_start_token=True,
        vote="argmax",
        batch_size=1,
        steps=None,
        seed=0,
        per_step=True,
        checkpoint=None,
        checkpoint_every=50,
        show_progress=False,
    )
    add("HeadRelevance.vector", relevance.vector, concept="Colour")
    add("HeadRelevance.order", relevance.order, concept="Colour", order="most", seed=0)
    add("HeadRelevance.top", relevance.top, concept="Colour", k=3)
    add("HeadRelevance.factors", relevance.factors, values=vector)
    add("HeadRelevance.step_similarity", relevance.step_similarity, concept=None)
    add("HeadRelevance.clamp", relevance.clamp, most=9.0)
    add("HeadRelevance.merge", lambda **g: relevance.merge(*g.values()), other=relevance)
    add("HeadRelevance.plot", relevance.plot, concept=None)
    add(
        "ordered_weakening",
        lambda **given: analyses.ordered_weakening(**given, show_progress=False, **one),
        model=unet,
        prompts=[PROMPT],
        relevance=relevance,
        concept="Colour",
        score=zeros,
        factor=-2.0,
        order=("most",),
        counts=[0, 1],
        seeds=[0],
        targets=["red"],
        words=None,
        steps=None,
        random_orders=1,
        batch_size=1,
        keep_images=False,
    )
    words = {"prompts": PROMPT, "heads": [(4, 0)], "factor": -2.0, "words": None, "branch": "cond"}
    add("weaken_words", analyses.weaken_words, model=unet, **words)
    add("weakening_prompts", analyses.weakening_prompts, concept="Color")
    add("published_counts", published_counts, heads=128)
    factors = relevance.factors(vector)
    add("rescale_word", analyses.rescale_word, model=unet, word="circle", factors=factors)
    add("rescaling_vector", analyses.rescaling_vector, desired=vector, undesired=vector, clamp=None)
    add("random_vector_like", analyses.random_vector_like, vector=vector, seed=0)
    add(
        "steer_word",
        lambda **given: analyses.steer_word(**given, **one),
        model=unet,
        prompts=PROMPT,
        word="circle",
        relevance=relevance,
        desired="Colour",
        undesired="Shape",
        clamp=None,
        steps=None,
        seed=0,
    )
    add(
        "diagnose_word",
        lambda **given: analyses.diagnose_word(**given, **one),
        model=unet,
        prompts=PROMPT,
        word="circle",
        concepts=["Colour", "Shape"],
        relevance=relevance,
        k=0.25,
        occurrence=None,
    )
    add("WordDiagnosis.of", world.diagnosis.of, concept="Shape")
    add("WordDiagnosis.largest", world.diagnosis.largest, by="share")
    add("WordDiagnosis.plot", world.diagnosis.plot, sample=0, images=None)
    both = {"model": world.mmdit, "prompts": PROMPT}
    head_patterns = lambda **g: analyses.head_patterns(**g, **world.one_mm)  # noqa: E731
    add("head_patterns", head_patterns, model=world.mmdit, prompts=PROMPT, names=None, every=None)
    chosen = {"heads": None, "blocks": None, "steps": None, "branch": "cond", "words": None}
    add("head_patterns, chosen", lambda **g: head_patterns(**both, **g), **chosen, seed=0)
    add("HeadPatterns.of", world.patterns.of, name="entropy")
    add("HeadPatterns.word", world.patterns.word, word="circle")
    add("HeadPatterns.plot", world.patterns.plot, what="entropy", sample=0)
    token_view = lambda **g: analyses.token_view(**g, **world.one_mm)  # noqa: E731
    add("token_view", token_view, model=world.mmdit, prompt=PROMPT, block=0, step=0, heads=None)


def of_patching(add: Add, world: World) -> None:
    sweep = {
        "model": world.unet,
        "clean": PROMPT,
        "corrupted": "a blue circle",
        "sites": Z,
        "axes": ("block",),
        "metric": patching.latent_projection,
        "direction": "denoise",
        "seeds": [0, 1],
        "steps": None,
        "positions": None,
        "batch_size": 16,
        "level": 0.95,
        "least": 1e-6,
        "show_progress": False,
    }
    exact = {"mode": "teacher-forced", "window": 1, "branch": "cond", "restart": True}
    add(
        "activation_patching",
        lambda **given: patching.activation_patching(**given, **world.one),
        **sweep,
        **exact,
        resume=None,
    )
    add(
        "attribution_patching",
        lambda **given: analyses.attribution_patching(**given, **world.one),
        **sweep,
        method="first-order",
        points=2,
    )
    of_pairs = ("clean", "corrupted", "metric", "direction", "least")
    ablated = {name: one for name, one in sweep.items() if name not in of_pairs}
    add(
        "ablation_sweep",
        lambda **given: analyses.ablation_sweep(**given, **world.one),
        **ablated,
        prompt=PROMPT,
        metric=patching.latent_distance,
        value="zero",
        others=(),
        window=1,
        branch="cond",
        restart=True,
        resume=None,
    )
    noise = lambda **g: world.patch(patching.WordNoise(**g))  # noqa: E731
    add("WordNoise", noise, words="red", scale=3.0, seed=0)
    add("PatchingResult.at", world.patched.at, block=4, head=1)
    add("PatchingResult.top", world.patched.top, count=3)
    add("PatchingResult.plot", world.patched.plot, title=None)
    add("PatchingResult.rank_correlation", world.patched.rank_correlation, other=world.patched)
    files = {"vectors": "x.npy", "heads": "y.npy", "ranking": None}
    add("load_published", analyses.load_published, **files)
