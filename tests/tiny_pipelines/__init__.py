"""Tiny random pipelines of every family: real diffusers classes, made in memory."""

from tests.tiny_pipelines.families import PIPELINES as PIPELINES
from tests.tiny_pipelines.families import TinyPipeline as TinyPipeline
from tests.tiny_pipelines.families import tiny_pipeline as tiny_pipeline
