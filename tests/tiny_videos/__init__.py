"""Tiny random video pipelines: real diffusers classes made from configs, nothing downloaded."""

from __future__ import annotations

from tests.tiny_videos.families import TINY_VIDEOS, TinyVideo, tiny_video

__all__ = ["TINY_VIDEOS", "TinyVideo", "tiny_video"]
