"""Metrics, figures and toys, with arguments that they take."""

from __future__ import annotations

import numpy as np
import torch

from diffusion_lens import toys, viz
from diffusion_lens.metrics import intervals, recovery, segmentation
from diffusion_lens.testing import tiny_denoiser
from tests.border.world import (
    PROMPT,
    Add,
    World,
)


def of_metrics(add: Add, world: World) -> None:
    values = torch.arange(12.0).reshape(2, 6)
    both = {"value": values, "source": values + 1}
    labels = [np.array([[0, 1], [1, 0]])]
    add("recovery", recovery.recovery, **both, base=values * 2, mask=None)
    add("distance", recovery.distance, **both, mask=None)
    add("normalised", recovery.normalised, score=values, source=values, base=values + 1, least=1e-6)
    samples = {"samples": values, "level": 0.9, "resamples": 9, "seed": 0}
    add("bootstrap_interval", intervals.bootstrap_interval, **samples)
    add("rank_correlation", intervals.rank_correlation, first=values, second=values)
    add("confusion", segmentation.confusion, predicted=labels, truth=labels, classes=2, ignore=None)
    add("pixel_accuracy", segmentation.pixel_accuracy, counts=np.array([[3, 1], [1, 3]]))
    add("projection", recovery.projection, **both, base=values * 2, mask=None)
    add("miou", segmentation.miou, counts=np.array([[3, 1], [1, 3]]))
    maps = {"saliency": np.eye(3), "mask": np.eye(3) > 0}
    add("average_precision", segmentation.average_precision, **maps)
    add("above_mean", segmentation.above_mean, saliency=np.eye(3))


def of_figures(add: Add, world: World) -> None:
    grid = {"values": np.ones((2, 2)), "rows": ["a", "b"], "columns": ["c", "d"], "title": None}
    add("head_grid", viz.head_grid, **grid)
    add("bars", viz.bars, values={"a": 1.0}, intervals=None, title=None)
    add("curves", viz.curves, x=[0, 1], curves={"a": [1.0, 2.0]}, intervals=None, x_title="")
    maps = {"images": world.image, "maps": np.zeros((2, 8, 8)), "titles": ["a", "b"]}
    add("overlays", viz.overlays, **maps, steps=None, alpha=0.6, zmin=None)
    add("overlay_image", viz.overlay_image, image=world.image, values=np.eye(4), alpha=0.5)
    add("image_strip", viz.image_strip, images=[world.image], captions=None, rows=None)
    add("tokens", viz.tokens, words=["a", "b"], values=[1.0, 2.0], rows=None)
    patterns = {"tokens": ["a", "b"], "patterns": np.ones((1, 2, 2)), "heads": None}
    add("token_patterns", viz.token_patterns, **patterns)
    add("write", viz.write, figure=viz.bars({"a": 1.0}), path=world.folder / "bars.html")
    add("gif", viz.gif, frames=[world.image], path=world.folder / "one.gif", fps=8.0)


def of_toys(add: Add, world: World) -> None:
    add("toys.folder", toys.folder, name="shapes-unet")
    add("toys.load", toys.load, name="shapes-unet", torch_dtype=None)
    add("toys.call_defaults", toys.call_defaults, pipe=world.unet, guidance=2.0, steps=20)
    drawn = {"pipe": world.unet, "captions": PROMPT, "seed": 0, "guidance": 2.0, "batch": 2}
    add("toys.generate", lambda **given: toys.generate(**given, steps=1), **drawn)
    add("toys.grade_image", toys.grade_image, image=world.image, caption=PROMPT)
    add("tiny_denoiser", tiny_denoiser, family="sd1", batch=2, seed=0)
