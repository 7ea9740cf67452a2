"""Runs, Sites, the model, caches and hook makers, with arguments that they take."""

from __future__ import annotations

from typing import Any

import torch

from diffusion_lens import ActivationCache, HookedDiffusion, Run, Site
from diffusion_lens import interventions as make
from diffusion_lens.reducers import RunningMean
from tests.border.world import (
    PATTERN,
    PROMPT,
    Add,
    World,
    Z,
    inside,
    nothing,
)


def of_runs(add: Add, world: World) -> None:
    add("Run", Run, prompt=PROMPT, seed=0, num_inference_steps=2, max_sequence_length=9)
    selectors = {"steps": None, "branch": None, "heads": None, "query": None, "key": None}
    add("Site", Site, name=Z, pos=None, **selectors)
    add("Site.parse", Site.parse, text=Z)
    add(
        "Site, run",
        lambda **given: world.hooked(nothing, Site(PATTERN, **given)),
        **selectors,
    )


def of_the_model(add: Add, world: World) -> None:
    unet, one = world.unet, world.one
    z_hooks = {"fwd_hooks": [(Z, nothing)], "bwd_hooks": ()}
    caching = {
        "names_filter": Z,
        "steps": None,
        "branch": "cond",
        "device": None,
        "dtype": None,
        "reduce": None,
        "max_bytes": None,
        "spool": None,
    }
    pipe: Any = unet.pipe
    generate = lambda: pipe(PROMPT, **one)  # noqa: E731
    settings = {name: value for name, value in one.items() if name != "num_inference_steps"}
    captioned = {"prompt": PROMPT, **settings}
    latents = unet.add_noise(torch.zeros(1, 3, 16, 16), noise_level=0.8)
    add("HookedDiffusion", HookedDiffusion, pipe=unet.pipe, name=None)
    add("toy", HookedDiffusion.toy, name="shapes-unet", torch_dtype=None)
    add("from_pretrained", HookedDiffusion.from_pretrained, model="toy:shapes-unet")
    add("call", unet, prompt=PROMPT, seed=0, **one)
    add("run_with_hooks", lambda **g: unet.run_with_hooks(**g, **one), prompt=PROMPT, **z_hooks)
    add(
        "run_with_cache",
        lambda **given: unet.run_with_cache(PROMPT, **given, **one),
        **caching,
        show_progress=False,
    )
    add("caching", inside(unet.caching, generate), **caching, branches=None)
    add("hooks", inside(unet.hooks, generate), **z_hooks, branches=None)
    add("denoise", lambda **g: unet.denoise(**g, **one), latents=latents, prompt=PROMPT, step=0)
    add("denoise, level", lambda **g: unet.denoise(latents, **g, **captioned), noise_level=0.5)
    add("encode_image", unet.encode_image, image=world.image, height=None, width=None, seed=None)
    decoded = torch.zeros(1, 3, 16, 16)
    add("decode_latents", unet.decode_latents, latents=decoded, height=None, output_type="pil")
    add("add_noise", unet.add_noise, latents=decoded, noise_level=0.5, seed=0)
    add("hook_names", unet.hook_names, pattern="**")
    add("hook_table", unet.hook_table, pattern="**")
    add("words", unet.words, prompt=PROMPT, word="red", occurrence=None)
    add("prompt_tokens", unet.prompt_tokens, prompt=PROMPT)
    add("to", lambda **given: unet.to(*given.values()), device="cpu")
    add(
        "concept_streams",
        inside(world.mmdit.concept_streams, lambda: None),
        concepts=["red", "circle"],
        tokens="all",
        pooled=None,
        attend=("concepts", "image"),
        blocks=None,
        max_sequence_length=None,
        slots=None,
        image_queries=False,
    )


def of_caches(add: Add, world: World) -> None:
    cache, folder = world.cache, world.folder
    add("cache.at", cache.at, step=0)
    add("cache.branch", cache.branch, name="cond")
    add("cache.stack", cache.cond.stack, name=[Z])
    add("cache.to", lambda **given: cache.to(*given.values()), device="cpu")
    add("cache.save", cache.save, folder=folder / "cache")
    add("cache.load", ActivationCache.load, folder=folder / "cache", device="cpu")
    add("RunningMean", RunningMean, over=())


def of_hook_makers(add: Add, world: World) -> None:
    run, cache = world.hooked, world.cache
    column = Site(PATTERN, key="circle", branch="cond")
    add("ablate_heads", lambda **g: run(make.ablate_heads(**g)), value="zero", source=None, seed=0)
    add("scale_heads", lambda **g: run(make.scale_heads(**g)), factor=2.0)
    add("scale_token_columns", lambda **g: run(make.scale_token_columns(**g), column), factor=2.0)
    add("replace_with", lambda **g: run(make.replace_with(**g)), cache=cache, name=None, step=None)
    add("freeze_pattern", lambda **g: run(make.freeze_pattern(**g), PATTERN), cache=cache)
    residual = "blocks.4.img.hook_resid_post"
    vector = torch.zeros(80)
    add("add_vector", lambda **g: run(make.add_vector(**g), residual), vector=vector, scale=1.0)
    add("bypass_block", make.bypass_block, model=world.unet, block=4, streams=None, steps=None)
