"""The head relevance vectors that the paper's authors published, for SD 1.4 and SDXL.

Source: arXiv 2412.02237 and its repository, https://github.com/SNU-DRL/HRV, folder `final_result`.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.head_relevance.concepts import PUBLISHED_CONCEPTS
from diffusion_lens.analyses.head_relevance.head_relevance import text_heads
from diffusion_lens.analyses.head_relevance.result import Head, HeadRelevance, vectors_of
from diffusion_lens.border import Count, public
from diffusion_lens.errors import ResultError, closest

PUBLISHED_CALLS = 2100 * 51
"""Prompts times denoiser evaluations: how often each head voted."""

REPOSITORY = (
    "https://raw.githubusercontent.com/SNU-DRL/HRV/414122f1ddc0005fcca20d02575a019ebe7c7310/"
    "final_result/"
)
_MIDDLE = "epoch_1_to_1_neg_prompt_False_merged_340_final_text_descriptions"
NAME = re.compile(r"(down|mid|up), layer: (\d+), head: (\d+)")


@public
@dataclass(frozen=True)
class PublishedFile:
    """A file on the network.

    Attributes:
        url: Where it lies.
        sha256: What it must hash to.
    """

    url: str
    sha256: str


PUBLISHED_FILES: Mapping[str, Mapping[str, PublishedFile]] = {
    "sd-1.4": {
        "vectors": PublishedFile(
            f"{REPOSITORY}category_vectors_{_MIDDLE}_sd_v1_4.npy",
            "1be200f3adc4fed89124d13a08dd9660585135766743a7612de84b5c925441cf",
        ),
        "heads": PublishedFile(
            f"{REPOSITORY}head_index_{_MIDDLE}_sd_v1_4.npy",
            "6fba813dd245797933759ecdccacd47b08afa5b56f82bee59ed7d96a87ff485e",
        ),
        "ranking": PublishedFile(
            f"{REPOSITORY}340_final_ranking_list.npy",
            "1507e27aac50144283eddee50ba1c52b2596e2d641de30f080cddf2bf0708169",
        ),
    },
    "sdxl": {
        "vectors": PublishedFile(
            f"{REPOSITORY}category_vectors_{_MIDDLE}_sd_xl_base_1_0.npy",
            "9c5bc5e2cc6a4c821a87825b96936b45f2d9c26a66a62f395b6e83f29163cea4",
        ),
        "heads": PublishedFile(
            f"{REPOSITORY}head_index_{_MIDDLE}_sd_xl_base_1_0.npy",
            "71204c9aaa3e7dbd461a7f9fc016408963c98404973204813e82a2deff543df4",
        ),
        "ranking": PublishedFile(
            f"{REPOSITORY}340_final_ranking_list_sd_xl_base_1_0.npy",
            "b78d30d10f03053d7cfa28ae20932ce1267bb081f2ada15475a6a632fddec922",
        ),
    },
}


@public
def load_published(
    vectors: str | Path,
    heads: str | Path,
    ranking: str | Path | None = None,
    *,
    concepts: Mapping[str, Sequence[str]] = PUBLISHED_CONCEPTS,
    calls: Count = PUBLISHED_CALLS,
    model: HookedDiffusion | None = None,
) -> HeadRelevance:
    """Read files in the format of the paper's repository.

    Args:
        vectors: `category_vectors_….npy`: concept, head.
        heads: `head_index_….npy`: a name such as `"up, layer: 8, head: 4"` for each head.
        ranking: `340_final_ranking_list….npy`: each head's share of votes for each concept. With it
            votes and vote shares are known.
        concepts: The concepts, in the order of the rows.
        calls: How often each head voted: prompts times denoiser evaluations.
        model: Check the heads against this model, and learn their modules' paths.

    Returns:
        The vectors as published, without steps and without parts of the prompts.

    Raises:
        ResultError: If shapes, names, row sums or counts are not as they must be.
    """
    values = _read(vectors, 2)
    names = [str(name) for name in _read(heads, 1)]
    if values.shape != (len(concepts), len(names)):
        raise ResultError(
            f"{vectors} has shape {values.shape}; {len(concepts)} concepts by {len(names)} heads "
            "are needed; give concepts= where the vectors are of others"
        )
    found = _heads(names, heads, model)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ResultError(f"{vectors} holds negative or non-finite values; is it the right file?")
    sums = values.astype(np.float64).sum(1)
    if not np.all((np.abs(sums - len(names)) < 1e-3 * len(names)) | (sums == 0)):
        raise ResultError(
            f"the rows of {vectors} sum to {sums.min():.4g} … {sums.max():.4g}; head relevance "
            f"vectors of {len(names)} heads sum to {len(names)}, unless they were clamped"
        )
    relevance = torch.from_numpy(values.astype(np.float32))
    votes = None if ranking is None else _votes(ranking, relevance, calls)
    return HeadRelevance(
        vectors=relevance,
        concepts=tuple(concepts),
        words={name: tuple(words) for name, words in concepts.items()},
        heads=found,
        votes=None if votes is None else votes[None],
        made_by={"vectors": str(vectors), "heads": str(heads), "ranking": str(ranking)},
    )


@public
def fetch_published(
    model: str | Mapping[str, PublishedFile], folder: str | Path, **settings: Any
) -> HeadRelevance:
    """Download the published files, unless they are there already, and load them.

    Args:
        model: `"sd-1.4"` or `"sdxl"`, or files of one's own under the names `vectors`, `heads` and
            perhaps `ranking`.
        folder: Where to keep them.
        **settings: As for `load_published`.

    Raises:
        ResultError: If a file does not hash to what it must. One that was there is left as it is,
            one from the network is not written.
        URLError: Without a network.
    """
    if isinstance(model, str) and model not in PUBLISHED_FILES:
        near = closest(model, PUBLISHED_FILES)
        hint = f" Closest: {near[0]!r}." if near else ""
        raise ResultError(
            f"nothing is published for {model!r}.{hint} There is {[*PUBLISHED_FILES]}"
        )
    files = PUBLISHED_FILES[model] if isinstance(model, str) else model
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    paths = {name: _fetched(file, where) for name, file in files.items()}
    return load_published(paths["vectors"], paths["heads"], paths.get("ranking"), **settings)


def _fetched(file: PublishedFile, folder: Path) -> Path:
    path = folder / file.url.rpartition("/")[2]
    if os.path.lexists(path):
        digest = _sha256(path.read_bytes()) if path.is_file() else "nothing"
        if digest != file.sha256:
            raise ResultError(
                f"{path} is something else than the published file: it hashes to {digest}, "
                f"expected {file.sha256}. It is left as it is; move it, or give another folder"
            )
        return path
    with urllib.request.urlopen(file.url) as answer:
        held = answer.read()
    digest = _sha256(held)
    if digest != file.sha256:
        raise ResultError(
            f"{file.url} hashes to {digest}, expected {file.sha256}; the file has changed or the "
            "download broke off. Nothing was written"
        )
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(held)
    partial.rename(path)
    return path


def _sha256(held: bytes) -> str:
    return hashlib.sha256(held).hexdigest()


def _read(path: str | Path, axes: int) -> np.ndarray:
    if not Path(path).is_file():
        raise ResultError(
            f"there is no file {path}; `fetch_published` downloads the published ones"
        )
    found = np.load(path, allow_pickle=False)
    if found.ndim != axes:
        raise ResultError(f"{path} has shape {found.shape}; {axes} axes are needed")
    return found


def _heads(
    names: Sequence[str], source: str | Path, model: HookedDiffusion | None
) -> tuple[Head, ...]:
    blocks: dict[tuple[str, str], int] = {}
    found = []
    for name in names:
        match = NAME.fullmatch(name)
        if match is None:
            raise ResultError(
                f'{source} calls a head {name!r}; names look like "up, layer: 8, head: 4"'
            )
        place, layer, head = match.groups()
        block = blocks.setdefault((place, layer), len(blocks))
        found.append(Head(block, int(head), "", name))
    if model is None:
        return tuple(found)
    theirs = text_heads(model)
    if [head.name for head in theirs] != list(names):
        raise ResultError(
            f"{source} lists {len(names)} heads from {names[0]!r} to {names[-1]!r}, {model.name} "
            f"has {len(theirs)} from {theirs[0].name!r} to {theirs[-1].name!r}: it is another model"
        )
    return theirs


def _votes(ranking: str | Path, vectors: torch.Tensor, calls: int) -> torch.Tensor:
    shares = torch.from_numpy(_read(ranking, 2).astype(np.float64))
    if shares.shape != vectors.shape:
        raise ResultError(f"{ranking} has shape {tuple(shares.shape)}, not {tuple(vectors.shape)}")
    votes = (shares * calls).round()
    off = float((shares * calls - votes).abs().max())
    if off > 0.05 or not torch.all(votes.sum(0) == calls):
        raise ResultError(
            f"{ranking} times {calls} is not a table of whole numbers in which every head votes "
            f"{calls} times (off by up to {off:.3g}); give calls= as prompts times evaluations"
        )
    if not torch.allclose(vectors_of(votes), vectors, rtol=1e-3, atol=1e-3):
        raise ResultError(f"{ranking} and the vectors do not belong together")
    return votes.long()
