"""Files in the format of the paper's repository, made up here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.head_relevance import (
    PublishedFile,
    fetch_published,
    load_published,
    text_heads,
)
from diffusion_lens.analyses.head_relevance.published import PUBLISHED_FILES
from diffusion_lens.errors import ResultError
from tests.pipelines import shared_pipe

CONCEPTS = {"Color": ("red",), "Shape": ("circle",), "Size": ("small",)}
CALLS = 40


def names(count: int = 8) -> list[str]:
    places = ["down, layer: 0", "down, layer: 1", "mid, layer: 0", "up, layer: 0"]
    return [f"{places[at // 2]}, head: {at % 2}" for at in range(count)]


def write(folder: Path, **changed: Any) -> dict[str, Any]:
    """The three files: every head votes `CALLS` times."""
    folder.mkdir(exist_ok=True)
    counts = np.random.default_rng(0).multinomial(CALLS, [0.5, 0.3, 0.2], 8).T.astype(np.float64)
    files = {
        "vectors": (8 * counts / counts.sum(1, keepdims=True)).astype(np.float32),
        "heads": np.array(names()),
        "ranking": counts / CALLS,
        **changed,
    }
    paths = {name: folder / f"{name}.npy" for name in files}
    for name, values in files.items():
        np.save(paths[name], values)
    return paths


def test_vectors_votes_and_names_are_read(tmp_path: Path) -> None:
    paths = write(tmp_path)
    found = load_published(**paths, concepts=CONCEPTS, calls=CALLS)
    assert found.concepts == ("Color", "Shape", "Size")
    assert [head.name for head in found.heads] == names()
    assert [head[:2] for head in found.heads[:5]] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert np.array_equal(found.vectors.numpy(), np.load(paths["vectors"]))
    assert found.votes is not None
    assert found.votes.dtype == torch.int64
    assert found.votes.sum(1).eq(CALLS).all()
    assert sum(found.vote_share.values()) == pytest.approx(1)


def test_vectors_alone_have_no_vote_shares(tmp_path: Path) -> None:
    paths = write(tmp_path)
    found = load_published(paths["vectors"], paths["heads"], concepts=CONCEPTS)
    assert found.top("Color", 1)
    with pytest.raises(ResultError, match="the ranking too"):
        found.vote_share  # noqa: B018
    with pytest.raises(ResultError, match="per_step=True"):
        found.per_step()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vectors": np.ones((3, 7), np.float32)}, r"shape \(3, 7\); 3 concepts by 8 heads"),
        ({"vectors": np.ones((3, 8), np.float32) * 2}, "sum to 16 … 16; .* sum to 8"),
        ({"vectors": -np.ones((3, 8), np.float32)}, "negative or non-finite"),
        ({"heads": np.array(["up 1"] * 8)}, "calls a head 'up 1'"),
        ({"ranking": np.full((3, 8), 0.301)}, "not a table of whole numbers"),
        ({"ranking": np.full((3, 8), [[0.5], [0.25], [0.25]])}, "do not belong together"),
        ({"ranking": np.ones((8,))}, "2 axes are needed"),
    ],
    ids=["shape", "sums", "negative", "names", "fractions", "others", "axes"],
)
def test_files_that_are_not_as_they_must_be_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResultError, match=message):
        load_published(**write(tmp_path, **changed), concepts=CONCEPTS, calls=CALLS)


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="`fetch_published` downloads"):
        load_published(tmp_path / "none.npy", tmp_path / "heads.npy")


def test_heads_are_checked_against_a_model(tmp_path: Path) -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    with pytest.raises(ResultError, match=r"lists 8 heads .* has 28 .* another model"):
        load_published(**write(tmp_path), concepts=CONCEPTS, calls=CALLS, model=model)
    listed = text_heads(model)
    vectors = np.ones((3, len(listed)), np.float32)
    theirs = write(tmp_path, vectors=vectors, heads=np.array([head.name for head in listed]))
    found = load_published(theirs["vectors"], theirs["heads"], concepts=CONCEPTS, model=model)
    assert found.heads == listed


def test_files_are_fetched_once_and_checked(tmp_path: Path) -> None:
    there = write(tmp_path / "there")
    files = {
        name: PublishedFile(path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())
        for name, path in there.items()
    }
    given = {"concepts": CONCEPTS, "calls": CALLS}
    first = fetch_published(files, tmp_path / "kept", **given)
    for path in there.values():
        path.unlink()
    again = fetch_published(files, tmp_path / "kept", **given)
    assert torch.equal(first.vectors, again.vectors)
    wrong = {**files, "heads": PublishedFile(files["heads"].url, "0" * 64)}
    with pytest.raises(ResultError, match=r"heads\.npy is something else .* expected 0000"):
        fetch_published(wrong, tmp_path / "kept", **given)
    with pytest.raises(ResultError, match=r"nothing is published for 'sd-1.5'. Closest: 'sd-1.4'"):
        fetch_published("sd-1.5", tmp_path)


def test_a_download_that_broke_off_is_not_kept(tmp_path: Path) -> None:
    there = write(tmp_path / "there")
    files = {name: PublishedFile(path.as_uri(), "0" * 64) for name, path in there.items()}
    with pytest.raises(ResultError, match=r"hashes to .* expected 0000.* Nothing was written"):
        fetch_published(files, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_what_has_the_name_of_a_published_file_is_left_as_it_is(tmp_path: Path) -> None:
    there = write(tmp_path / "there")
    files = {name: PublishedFile(path.as_uri(), "0" * 64) for name, path in there.items()}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "vectors.npy").write_text("precious")
    with pytest.raises(ResultError, match=r"vectors\.npy is something else .* another folder"):
        fetch_published(files, mine)
    assert (mine / "vectors.npy").read_text() == "precious"
    (mine / "vectors.npy").unlink()
    (mine / "vectors.npy").mkdir()
    with pytest.raises(ResultError, match=r"vectors\.npy is something else .* hashes to nothing"):
        fetch_published(files, mine)


def test_every_published_file_has_a_checksum() -> None:
    for files in PUBLISHED_FILES.values():
        assert set(files) == {"vectors", "heads", "ranking"}
        for file in files.values():
            assert file.url.startswith("https://")
            assert len(bytes.fromhex(file.sha256)) == 32
