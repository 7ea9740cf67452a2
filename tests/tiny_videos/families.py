"""The tiny video pipelines by family."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

from tests.tiny_videos import hunyuan, kandinsky, ltx2, others, wan
from tests.tiny_videos.settings import TinyVideo

TINY_VIDEOS: dict[str, Callable[[], TinyVideo]] = {
    "wan": wan.wan,
    "wan_i2v": wan.wan_i2v,
    "wan_ti2v": wan.wan_ti2v,
    "wan_ti2v_image": wan.wan_ti2v_image,
    "ltx_video": others.ltx_video,
    "hunyuan_video": hunyuan.hunyuan_video,
    "hunyuan_video_15": hunyuan.hunyuan_video_15,
    "chrono_edit": wan.chrono_edit,
    "skyreels_v2": wan.skyreels_v2,
    "consisid": others.consisid,
    "wan_animate": wan.wan_animate,
    "wan_vace": wan.wan_vace,
    "sana_video": others.sana_video,
    "easy_animate": others.easy_animate,
    "cosmos25": others.cosmos25,
    "allegro": others.allegro,
    "kandinsky5": kandinsky.kandinsky5,
    "motif_video": others.motif_video,
    "ltx2": ltx2.ltx2,
    "mochi": others.mochi,
}
"""What makes the tiny pipeline of each family that has one denoiser."""


def fresh_video(make: Callable[[], TinyVideo]) -> TinyVideo:
    """A pipeline of its own, with the same weights each time."""
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = make()
    made.pipe.set_progress_bar_config(disable=True)
    _without_ftfy(type(made.pipe))
    return made


def _without_ftfy(kind: type) -> None:
    """Let pipelines clean prompts without `ftfy`, which most of them call but do not require."""
    module: Any = sys.modules[kind.__module__]
    if hasattr(module, "prompt_clean") and not hasattr(module, "ftfy"):
        module.ftfy = types.SimpleNamespace(fix_text=str)


@functools.cache
def tiny_video(family: str) -> TinyVideo:
    """The pipeline that tests of a family share and must leave as it was."""
    return fresh_video(TINY_VIDEOS[family])
