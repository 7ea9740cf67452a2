"""Edits, their interventions and their scores, with arguments that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import Run, Site, analyses
from diffusion_lens import interventions as make
from diffusion_lens.analyses.attend_and_excite import Excite, attend_and_excite
from diffusion_lens.metrics.alignment import ClipScore
from diffusion_lens.metrics.captions import CaptionScore, least_object
from diffusion_lens.metrics.objects import TextMasks
from diffusion_lens.metrics.perceptual import PerceptualDistance
from diffusion_lens.metrics.structure import DinoSimilarity
from tests.border.world import PROMPT, Add, World, Z
from tests.metrics.tiny import captioner, clip_score, dino_similarity, text_masks

TARGET = "a blue circle"
KEYS = [Site("blocks.4.attn.img.hook_k")]


def of_edits(add: Add, world: World) -> None:
    unet, one = world.unet, {**world.one, "output_type": "latent"}
    both = {"model": unet, "source": PROMPT, "targets": TARGET, "seed": 0}
    injected = {"blocks": None, "record": False}
    add(
        "prompt_to_prompt",
        lambda **given: analyses.prompt_to_prompt(**given, **one),
        **both,
        cross_replace=0.8,
        self_replace=0.4,
        edit="replace",
        word_ranges=None,
        reweight={"blue": 2.0},
        local_blend=None,
        relevance=None,
        concept=None,
        clamp=None,
        self_max_tokens=256,
        keep_maps=False,
    )
    add(
        "prompt_to_prompt, relevance",
        lambda **given: analyses.prompt_to_prompt(unet, PROMPT, TARGET, **given, **one),
        relevance=world.relevance,
        concept="Colour",
        clamp=9.0,
        word_ranges={"blue": (0.0, 1.0)},
        local_blend=analyses.LocalBlend(("red", "blue")),
    )
    blended = lambda **given: analyses.prompt_to_prompt(  # noqa: E731
        unet, PROMPT, TARGET, local_blend=analyses.LocalBlend(**given), **one
    )
    add("LocalBlend", blended, words=("red", "blue"), threshold=0.3, level=2)
    add(
        "free_prompt_editing",
        lambda **given: analyses.free_prompt_editing(**given, **one),
        **both,
        **injected,
        self_replace=0.8,
    )
    masactrl = lambda **given: analyses.masactrl(**given, **one)  # noqa: E731
    add("masactrl", masactrl, **both, **injected, first_step=0)
    add(
        "plug_and_play",
        lambda **given: analyses.plug_and_play(**given, **one),
        **both,
        **injected,
        features=0.8,
        attention=0.5,
        resnet="up_blocks.1.resnets.1",
    )
    latent = {**world.one_mm, "output_type": "latent"}
    add(
        "stable_flow",
        lambda **given: analyses.stable_flow(**given, **latent),
        **{**both, "model": world.mmdit},
        blocks=[0, 1],
        record=False,
    )
    image = world.image
    strong = {**both, "source": image, "strength": 1.0}
    add("sdedit", lambda **given: analyses.sdedit(**given, **world.one), **strong)
    steps: dict[str, Any] = {"num_inference_steps": 1}
    add(
        "invert",
        lambda **given: analyses.invert(**given, **steps),
        model=unet,
        image=image,
        prompt=PROMPT,
        rounds=1,
        guidance_scale=1.0,
    )
    vital = lambda **given: analyses.vital_blocks(**given, **world.one_mm)  # noqa: E731
    add("vital_blocks", vital, model=world.mmdit, prompts=PROMPT, distance=None, seed=0)
    found = analyses.VitalBlocks(torch.rand(5, 1), "pixels", (PROMPT,))
    add("VitalBlocks.top", found.top, count=2)
    images, latents = [image, image], torch.zeros(2, 3, 16, 16)
    edited = analyses.EditedImages(PROMPT, (TARGET,), images, latents, "masactrl")
    add("EditedImages.plot", edited.plot, captions=None)


def of_excited(add: Add, world: World) -> None:
    unet, one = world.unet, {**world.one, "output_type": "latent"}
    size = {"step_size": 1.0, "scale_range": (1.0, 0.5), "max_rounds": 1}
    when = {"thresholds": {0: 0.05}, "max_iter_to_alter": 1}
    add(
        "attend_and_excite",
        lambda **given: attend_and_excite(**given, **one),
        model=unet,
        prompt=PROMPT,
        words="circle",
        relevance=None,
        concepts=None,
        **size,
        **when,
        smooth=0.5,
        resolution=None,
        competing="all",
        checkpoint=False,
        seed=0,
    )
    add(
        "attend_and_excite, relevance",
        lambda **given: attend_and_excite(unet, PROMPT, words="circle", **size, **given, **one),
        relevance=world.relevance,
        concepts="Shape",
        thresholds={0: 0.05},
        max_iter_to_alter=0,
        resolution=4,
    )
    sites = unet.text_pattern_sites()[-1:]
    drawn = {**world.one, "num_inference_steps": 1, "output_type": "latent"}

    def updated(update: Any) -> Any:
        return make.run_with_latent_update(unet, PROMPT, update, **drawn)

    add(
        "Excite",
        lambda **g: updated(make.LatentUpdate(sites, loss, Excite(**g))),
        **size,
        **when,
        losses=[],
    )
    descend = lambda **g: updated(make.LatentUpdate(sites, loss, make.descend(**g)))  # noqa: E731
    add("descend", descend, step_size=0.1, steps=None)
    add(
        "LatentUpdate",
        lambda **given: updated(make.LatentUpdate(**given)),
        sites=sites,
        loss=loss,
        rule=same,
        checkpoint=False,
        evaluations=[],
    )
    add(
        "run_with_latent_update",
        lambda **given: make.run_with_latent_update(**given, **drawn),
        model=unet,
        prompts=PROMPT,
        update=make.LatentUpdate(sites, loss, make.descend(step_size=0.1)),
        seed=0,
    )
    noise = torch.zeros(1, 3, 16, 16)
    add(
        "PatternGradient",
        lambda **given: make.PatternGradient(**given)(noise, 0),
        model=unet,
        run=Run(PROMPT, **world.one),
        sites=sites,
        loss=loss,
        checkpoint=False,
    )


def of_references(add: Add, world: World) -> None:
    pair = lambda hooks: world.unet.run_with_hooks(  # noqa: E731
        [PROMPT, TARGET], fwd_hooks=hooks, **world.one, output_type="latent"
    )
    add("beside", lambda **given: pair(make.beside(**given)), sites=KEYS)
    add("Reference", make.Reference, folder=None)
    recorded = make.Reference()
    pair(recorded.recording(KEYS))
    add("Reference.recording", lambda **g: pair(make.Reference().recording(**g)), sites=KEYS)
    add("Reference.injecting", lambda **g: pair(recorded.injecting(**g)), sites=KEYS)
    add("steps_of", world.cache.cond.steps_of, asked=Z)


def of_image_scores(add: Add, world: World) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    clip, dino = clip_score(), dino_similarity()
    caption, masks = captioner(clip, world.folder), text_masks(world.folder)
    one: dict[str, Any] = {"images": [image], "others": [image]}
    keep = {"model": clip.model, "processor": clip.processor, "batch_size": 2}
    add("ClipScore", ClipScore, **keep)
    clip_saved = world.folder / "clip"
    clip.model.save_pretrained(clip_saved)
    clip.processor.save_pretrained(clip_saved)
    add("ClipScore.load", ClipScore.load, model=str(clip_saved), device="cpu")
    add("ClipScore call", clip, images=[image], texts="a red cat")
    add("ClipScore.embed_images", clip.embed_images, images=[image])
    add("ClipScore.embed_texts", clip.embed_texts, texts=["a red cat"])
    parts = {"captioner": caption.captioner, "processor": caption.processor}
    add("CaptionScore", CaptionScore, **parts, clip=clip, batch_size=2)
    add("CaptionScore call", caption, images=[image], prompts=["a red cat"])
    add("CaptionScore.captions", caption.captions, images=[image], max_new_tokens=2)
    add("least_object", least_object, clip=clip, images=[image], prompts=["a cat and two dogs"])
    add("DinoSimilarity", DinoSimilarity, model=dino.model, processor=dino.processor, batch_size=2)
    empty = [np.zeros((32, 32), bool)]
    saved = world.folder / "dino"
    dino.model.save_pretrained(saved)
    dino.processor.save_pretrained(saved)
    add("DinoSimilarity.load", DinoSimilarity.load, model=str(saved), device="cpu")
    add("DinoSimilarity call", dino, **one, masks=empty, other_masks=None)
    add("DinoSimilarity.embed", dino.embed, images=[image], masks=empty)
    distance = PerceptualDistance(lambda first, second: (first - second).abs().mean((1, 2, 3)))
    add("PerceptualDistance", PerceptualDistance, model=distance.model, batch_size=2)
    add("PerceptualDistance call", distance, **one)
    whole = {"detector": masks.detector, "processor": masks.processor, "segmenter": masks.segmenter}
    add("TextMasks", TextMasks, **whole, threshold=0.0, text_threshold=0.0)
    add("TextMasks call", masks, images=[image], texts="cat")
    add("TextMasks.boxes", masks.boxes, image=image, text="cat")
    boxes = torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    add("TextMasks.outline", masks.outline, image=image, boxes=boxes)


def loss(seen: Any) -> Tensor:
    """The largest attention to one token."""
    return -torch.stack([pattern[..., 2].amax() for pattern, _ in seen]).sum()


def same(latents: Tensor, _step: int, _evaluate: Any) -> Tensor:
    """A rule that changes nothing."""
    return latents
