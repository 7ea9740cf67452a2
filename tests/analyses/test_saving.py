"""Results come back from a folder as they were."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lens.analyses.saving import Saved, load_fields, save_fields
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
    ids=str,
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
