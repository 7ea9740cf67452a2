"""Results come back from a folder as they were."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusion_lens.analyses.saving import (
    RESULT,
    TENSORS,
    Saved,
    load_fields,
    read_made_by,
    save_fields,
)
from diffusion_lens.errors import ResultError


@dataclass(frozen=True)
class Held:
    values: Any
    about: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Other:
    values: Any


@dataclass(frozen=True)
class Result(Saved):
    values: Any


@dataclass(frozen=True)
class Made(Saved):
    maps: Any
    made_by: dict[str, Any]


def test_a_result_saves_and_loads_itself(tmp_path):
    folder = Result(torch.arange(3)).save(tmp_path / "new" / "folder")
    found = Result.load(folder)
    assert type(found) is Result and torch.equal(found.values, torch.arange(3))
    with pytest.raises(ResultError, match=r"holds a Result, not a Other; call Result\.load"):
        load_fields(Other, folder)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "word",
        2.5,
        True,
        (1, (2, "three")),
        ["a", ("b",)],
        {"block": (0, 1), 3: [None]},
        {(0, 1): "head"},
        {"tensor": "a dict with the name of a kind"},
    ],
)
def test_plain_values_come_back_with_their_types(value: Any, tmp_path: Any) -> None:
    loaded = load_fields(Held, save_fields(Held(value), tmp_path))
    assert loaded.values == value
    assert type(loaded.values) is type(value)


def test_tensors_inside_containers_come_back_with_their_dtype(tmp_path: Any) -> None:
    tensors = {"votes": torch.arange(6).reshape(2, 3), "maps": (torch.rand(2).half(), 1)}
    loaded = load_fields(Held, save_fields(Held(tensors["votes"].mT, tensors), tmp_path))
    assert torch.equal(loaded.values, tensors["votes"].mT)
    assert torch.equal(loaded.about["votes"], tensors["votes"])
    assert loaded.about["maps"][0].dtype == torch.float16


def test_images_and_arrays_come_back(tmp_path: Any) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    loaded = load_fields(Held, save_fields(Held(image, {"x": np.eye(2)}), tmp_path))
    assert np.array_equal(np.array(loaded.values), np.array(image))
    assert np.array_equal(loaded.about["x"], np.eye(2))


def test_one_tensor_held_twice_is_written_twice(tmp_path: Any) -> None:
    tensor = torch.rand(3)
    loaded = load_fields(Held, save_fields(Held(tensor, {"again": tensor}), tmp_path))
    assert torch.equal(loaded.about["again"], tensor)


def test_a_folder_without_a_result_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ResultError, match=r"no result\.json"):
        load_fields(Held, tmp_path)


def test_another_result_is_refused_by_name(tmp_path: Any) -> None:
    save_fields(Other(1), tmp_path)
    with pytest.raises(ResultError, match=r"call Other\.load"):
        load_fields(Held, tmp_path)


def saved(folder: Path) -> Path:
    return save_fields(Held(torch.arange(6), {"one": 1}), folder)


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def written(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / RESULT).write_text(text)

    return write


def flipped(folder: Path) -> None:
    raw = bytearray((folder / TENSORS).read_bytes())
    raw[-8] ^= 1
    (folder / TENSORS).write_bytes(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut(TENSORS, 20), r"tensors\.safetensors and the result\.json .* do not belong together"),
        (cut(TENSORS, 0), r"tensors\.safetensors and the result\.json .* do not belong together"),
        (flipped, r"cut short or changed, or is of another result; save the result again"),
        (
            lambda folder: (folder / TENSORS).unlink(),
            r"tensors\.safetensors cannot be read .*missing",
        ),
        (cut(RESULT, 40), r"result\.json cannot be read .*cut short .* save the result again"),
        (cut(RESULT, 0), r"result\.json cannot be read"),
        (written("[]"), r"result\.json is no saved result"),
        (written('{"result": "Held"}'), r"result\.json is no saved result"),
        (written('{"result": 3, "fields": {}}'), r"result\.json is no saved result"),
        (
            written('{"result": "Held", "fields": {"values": {"exec": 1}, "about": {"dict": []}}}'),
            r"do not belong together",
        ),
    ],
)
def test_damaged_results_name_the_file(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    change(saved(tmp_path))
    with pytest.raises(ResultError, match=message):
        load_fields(Held, tmp_path)


def test_tensors_of_another_result_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "mine")
    save_fields(Held(torch.zeros(6, dtype=torch.int64), {"one": 1}), tmp_path / "other")
    shutil.copy(tmp_path / "other" / TENSORS, tmp_path / "mine" / TENSORS)
    with pytest.raises(ResultError, match="do not belong together"):
        load_fields(Held, tmp_path / "mine")


def without_digest(folder: Path, **fields: Any) -> None:
    about = json.loads((folder / RESULT).read_text())
    del about["tensors"]
    about["fields"] |= fields
    (folder / RESULT).write_text(json.dumps(about))


def test_results_from_before_there_were_digests_still_load(tmp_path: Path) -> None:
    without_digest(saved(tmp_path))
    assert torch.equal(load_fields(Held, tmp_path).values, torch.arange(6))
    save_file({"other": torch.zeros(6)}, tmp_path / TENSORS)
    with pytest.raises(ResultError, match="do not belong together"):
        load_fields(Held, tmp_path)
    (tmp_path / TENSORS).write_bytes(b"short")
    with pytest.raises(ResultError, match=r"tensors\.safetensors cannot be read"):
        load_fields(Held, tmp_path)


@pytest.mark.parametrize("value", [{"exec": "values"}, {"array": 3}, {"tuple": 7}, {}], ids=str)
def test_values_of_no_known_kind_are_refused(value: Any, tmp_path: Path) -> None:
    without_digest(save_fields(Held(1), tmp_path), values=value)
    with pytest.raises(ResultError, match=r"holds a Held of another form"):
        load_fields(Held, tmp_path)


def test_folders_are_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResultError, match=r"cannot be made .* give the name of a folder"):
            saved(folder)


def test_what_made_a_result_is_read_without_its_tensors(tmp_path: Path) -> None:
    about = {"steps": (1, 2), "words": {"A": ["a"]}}
    Made(torch.ones(2), about).save(tmp_path)
    (tmp_path / TENSORS).unlink()
    assert read_made_by(tmp_path) == about
    Made(torch.ones(2), {"held": torch.ones(1)}).save(tmp_path)
    with pytest.raises(ResultError, match="does not say what made it"):
        read_made_by(tmp_path)
