"""Values told as text: equal values alike, other values otherwise, in every process."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.border import public
from diffusion_lens.long_runs.telling import told, weights_told


@dataclasses.dataclass
class Scale:
    factor: float


class Scorer:
    def __init__(self, weight: float) -> None:
        self.network = nn.Linear(2, 2)
        nn.init.constant_(self.network.weight, weight)
        nn.init.zeros_(self.network.bias)

    def score(self, value: Any) -> Any:
        return value


def adding(number: float) -> Callable[[float], float]:
    return lambda value: value + number


APART: dict[str, tuple[Any, Any]] = {
    "one element of a tensor": (torch.zeros(9), torch.zeros(9).index_fill(0, torch.tensor(4), 1)),
    "the shape of a tensor": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "the precision of a tensor": (torch.zeros(4), torch.zeros(8, dtype=torch.float16)),
    "one element of an array": (np.zeros(3), np.array([0.0, 0.0, 1.0])),
    "one pixel": (Image.new("L", (2, 1)), Image.fromarray(np.array([[0, 1]], np.uint8))),
    "a generator's state": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "the end of a long text": ("a" * 999, "a" * 999 + "b"),
    "a text and a number": ("1", 1),
    "the order of a mapping": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "deep inside": ({"a": [(1, {"b": torch.ones(1)})]}, {"a": [(1, {"b": torch.zeros(1)})]}),
    "a dataclass's field": (Scale(1.0), Scale(2.0)),
    "the code of a lambda": (lambda value: value + 1, lambda value: value - 1),
    "what a lambda closes over": (adding(1.0), adding(2.0)),
    "an argument of a partial": (partial(max, key=adding(1.0)), partial(max, key=adding(2.0))),
    "a default": (lambda value, n=1: value, lambda value, n=2: value),
    "a network inside an object": (Scorer(1.0), Scorer(2.0)),
    "whose method it is": (Scorer(1.0).score, Scorer(2.0).score),
    "a seed": (Run("a", seed=1), Run("a", seed=2)),
    "a class": (Scale, Scorer),
}


@pytest.mark.parametrize(("one", "other"), APART.values(), ids=APART.keys())
def test_other_values_are_told_otherwise(one: Any, other: Any) -> None:
    assert told(one) != told(other)
    assert json.dumps(told(one)) == json.dumps(told(one))


def test_equal_values_are_told_alike() -> None:
    assert told(torch.ones(2, 3)) == told(torch.ones(3, 2).T)
    assert told({"b", "a"}) == told({"a", "b"})
    assert told(Scorer(1.0)) == told(Scorer(1.0))
    assert told(adding(1.0)) == told(adding(1.0))
    assert told(np.float64(2.0)) == told(2.0)


def test_no_address_is_told() -> None:
    assert "0x" not in json.dumps(told([object(), max, adding(1.0), Scorer(1.0)]))


def test_what_holds_itself_comes_to_an_end() -> None:
    itself: list[Any] = []
    itself.append(itself)
    assert json.dumps(told(itself))


@pytest.mark.slow
def test_another_process_tells_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Among them sets, whose order depends on a seed that each process draws."""
    page = tmp_path / "page.py"
    page.write_text(
        "from diffusion_lens.long_runs.telling import told\n"
        "def f(x): return x in {'a', 'b', 'c', 'd'}, (lambda y: {'e', 'f', 'g'})\n"
        "print(told([f, {'a', 'b', 'c', 'd'}, object()]))"
    )
    runpy.run_path(str(page), run_name="__main__")
    here = capfd.readouterr().out
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, str(page)], check=True, env=environment)
    assert capfd.readouterr().out == here


def test_a_wrapped_model_is_told_by_its_weights() -> None:
    def network(seed: int) -> HookedDiffusion:
        model = HookedDiffusion.toy("shapes-unet")
        weight = model.denoiser.get_submodule("conv_in").weight
        assert isinstance(weight, Tensor)
        weight.data[0, 0, 0, 0] += seed
        return model

    assert told(network(0)) == told(network(0)) != told(network(1))
    assert told(network(0).pipe) != told(network(1).pipe)


# -- weights ------------------------------------------------------------------------------------


def changed(how: str) -> Any:
    torch.manual_seed(0)
    part: Any = nn.Sequential(nn.Linear(6, 4), nn.Linear(3, 5), nn.BatchNorm1d(2))
    weight = part[0].weight.data
    if how == "one weight":
        weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(9.0))
    elif how == "a sign":
        weight[2] *= -1
    elif how == "rows exchanged":
        weight.copy_(weight.flip(0))
    elif how == "columns exchanged":
        weight.copy_(weight.flip(1))
    elif how == "odd sizes":
        part[1].weight.data[4, 2] += 1
    elif how == "a buffer":
        part[2].running_mean[0] = 1
    elif how == "half precision":
        part.half()
    elif how == "training":
        part.eval()
    return part


CHANGES = (
    *("one weight", "a sign", "rows exchanged", "columns exchanged", "odd sizes", "a buffer"),
    *("half precision", "training"),
)


@pytest.mark.parametrize("how", CHANGES)
def test_other_weights_are_told_otherwise(how: str) -> None:
    assert weights_told(changed("")) == weights_told(changed(""))
    assert weights_told(changed(how)) != weights_told(changed(""))


def test_weights_are_told_by_value_and_not_by_how_they_lie_in_memory() -> None:
    plain = changed("")
    other = changed("")
    held = torch.empty(1 + other[0].weight.numel())
    held[1:] = other[0].weight.detach().flatten()
    other[0].weight.data = held[1:].view(4, 6)
    other[1].weight.data = other[1].weight.data.T.contiguous().T
    assert weights_told(plain) == weights_told(other)


def test_a_cache_that_is_not_saved_is_not_told() -> None:
    part: Any = nn.Module()
    part.register_buffer("seen", torch.zeros(2), persistent=False)
    before = weights_told(part)
    part.seen.fill_(1)
    assert weights_told(part) == before


def test_every_number_type_has_a_checksum() -> None:
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float64, torch.complex64, torch.bool):
        part: Any = nn.Module()
        part.register_buffer("value", torch.zeros(2, 3).to(dtype))
        before = weights_told(part)
        part.value.view(torch.uint8)[0, 0] = 1
        assert weights_told(part) != before, dtype


def test_weights_that_are_kept_elsewhere_are_read_from_there() -> None:
    def offloaded(value: float) -> nn.Module:
        part: Any = nn.Linear(2, 2, bias=False, device="meta")
        hook = type("Hook", (), {"weights_map": {"weight": torch.full((2, 2), value)}})
        part._hf_hook = hook()
        return part

    assert weights_told(offloaded(1.0)) != weights_told(offloaded(2.0))


def test_quantised_weights_are_told_by_the_tensors_they_are_made_of() -> None:
    class Quantised(Tensor):
        packed: Tensor

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["packed"], None

    def part(value: float) -> nn.Module:
        weight = torch.zeros(2).as_subclass(Quantised)
        weight.packed = torch.full((2,), value)
        module = nn.Module()
        module.register_buffer("weight", weight)
        return module

    assert weights_told(part(1.0)) != weights_told(part(2.0))


def test_a_public_function_is_told_alike_before_and_after_its_first_call() -> None:
    @public
    def score(value: float) -> float:
        """The checks of its arguments are made when it is first called."""
        return 2 * value

    before = told(score)
    assert score(1.0) == 2
    assert told(score) == before
    assert told(partial(score, value=1.0)) != told(partial(score, value=2.0))
