"""The 34 concepts of the head relevance paper, ten words each, as published.

Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
2412.02237, and its repository SNU-DRL/HRV, in the order of the released vectors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType


def _published() -> Mapping[str, tuple[str, ...]]:
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    return MappingProxyType({name: tuple(words) for name, words in json.loads(text).items()})


PUBLISHED_CONCEPTS: Mapping[str, tuple[str, ...]] = _published()
"""Concept to its words, in the order of the released vectors."""
