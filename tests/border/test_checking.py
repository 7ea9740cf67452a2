"""What the decorator refuses, lets pass and says."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses import AttentionMaps, activation_patching
from diffusion_lens.border import (
    Between,
    Count,
    Fraction,
    Index,
    Level,
    Number,
    PipelineSetting,
    Positive,
    Seed,
    Size,
    public,
)
from diffusion_lens.border.devices import Device
from diffusion_lens.border.hints import test_of as accepts
from diffusion_lens.border.pictures import Pictures
from diffusion_lens.errors import ArgumentError, DiffusionLensError


@runtime_checkable
class Has(Protocol):
    def result(self) -> int: ...


class Result:
    def result(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [3, -1, np.int64(3)], [True, 3.0, "3", None, torch.tensor(3)]),
        (float, [3, 0.5, np.float32(1), math.nan], [True, "1", 1j, None]),
        (bool, [True, False], [1, 0, None, torch.tensor(True)]),
        (str, ["", "a"], [b"a", 1, None, ["a"]]),
        (str | None, ["a", None], [0, []]),
        (Count, [1, 2**31 - 1], [0, -1, True, 10**12, 1.5]),
        (Index, [0, 7], [-1, True, 10**12]),
        (Size, [1, 65536], [0, 65537, 10**12, "9"]),
        (Seed, [0, -(2**63), 2**64 - 1], [2**64, 1.0, False]),
        (Number, [0, -1.5, 1e300], [math.nan, math.inf, -math.inf, True, "1"]),
        (Positive, [1e-9, 3], [0, -1, math.inf, math.nan]),
        (Fraction, [0, 0.5, 1], [-0.1, 1.1, math.nan]),
        (Level, [0.5], [0, 1, math.nan]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (Sequence[str], [[], ["a"], ("a", "b")], ["a", ["a", 1], {"a"}, {"a": 1}, b"a", None]),
        (Sequence[int], [range(3), [1, 2]], [np.arange(3), [1, None], [True], "12"]),
        (Iterable[int], [{1, 2}, (n for n in "ab"), np.arange(3)], [3, "12", ["a"], torch.ones(2)]),
        (Iterable[Any], [torch.ones(2, 2)], [torch.tensor(1), "ab"]),
        (tuple[int, str], [(1, "a")], [(1,), (1, "a", 2), [1, "a"], ("a", 1)]),
        (tuple[int, ...], [(), (1, 2)], [(1, "a"), [1]]),
        (Mapping[tuple[int, int], float], [{}, {(1, 2): 0.5}], [{"a": 1}, {(1, 2): "x"}, [1]]),
        (Callable[[str], bool], [str.isupper, lambda _name: True], ["a", float, None]),
        (Callable[[], Has], [Result, lambda: Result()], [3]),
        (Callable[..., Any], [float, print], [3]),
        (Has, [Result()], [3, object()]),
        (type[int], [int, bool], [str, 3]),
        (Path | str, [Path(), "a"], [3, b"a"]),
        (Float[Tensor, " n"], [torch.ones(2)], [torch.ones(2, 2), np.ones(2), torch.arange(2)]),
        (Device | None, ["cpu", torch.device("cpu"), None], ["nonsense", "", -1, "cuda:99", True]),
        (Pictures, [np.ones((2, 2)), [[torch.ones(2)]]], [None, "a.png", [None], 3]),
        (Any, [None, object()], []),
    ],
)
def test_a_hint_takes_what_it_says(hint: Any, right: list[Any], wrong: list[Any]) -> None:
    test = accepts(hint)
    assert [value for value in right if not test(value)] == []
    assert [value for value in wrong if test(value)] == []


def test_every_item_is_looked_at() -> None:
    test = accepts(Sequence[int])
    assert not any(test([*range(n), None, *range(n, 99)]) for n in range(99))


def test_an_iterator_is_not_used_up() -> None:
    given = iter(["a", "b"])
    assert accepts(Iterable[int])(given)
    assert list(given) == ["a", "b"]


def test_an_annotation_of_a_new_kind_is_noticed() -> None:
    with pytest.raises(NotImplementedError, match="has no test"):
        accepts(3)


@public
def sweep(
    model: HookedDiffusion | None,
    words: str | Sequence[str] = (),
    *,
    seeds: int | Sequence[int] | None = None,
    heads: Mapping[tuple[int, int], float] | None = None,
    batch: Count = 1,
    share: Fraction = 0.5,
    vector: Float[Tensor, " head"] | None = None,
    **settings: PipelineSetting,
) -> dict[str, Any]:
    """Sweep.

    Args:
        model: The model.
        words: Which words are meant; a text stands for one,
            a list for several.
        seeds: One seed, or
            several of them. Each is used once.
        heads: Factors.
        batch: How many at once.
        **settings: Of the pipeline.
    """
    return {"words": words, "seeds": seeds, "batch": batch, **settings}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"seeds": "nonsense"},
            "sweep(seeds=…) takes int | Sequence[int] | None, got 'nonsense' (str). seeds: One "
            "seed, or several of them.",
        ),
        (
            {"seeds": [0, None]},
            "sweep(seeds=…) takes int | Sequence[int] | None, got [0, None] (list), where item 1 "
            "is None. seeds: One seed, or several of them.",
        ),
        (
            {"seeds": np.arange(3)},
            "got a numpy int64 ndarray of shape (3,). Make a list of it: `….tolist()`.",
        ),
        ({"words": {"a"}}, "A set has no order: give a list. words: Which words are meant."),
        (
            {"batch": True},
            "sweep(batch=…) takes int from 1 to 2,147,483,647, got True (bool). True and False are "
            "no numbers here. batch: How many at once.",
        ),
        ({"share": math.nan}, "sweep(share=…) takes float from 0 to 1, got nan (float)."),
        (
            {"heads": {(4, 0): "x"}},
            "got {(4, 0): 'x'} (dict), where the value of (4, 0) is 'x' (str). heads: Factors.",
        ),
        ({"heads": {"a": 1}}, "where the key is 'a' (str)"),
        (
            {"vector": np.ones(3)},
            "takes Float[Tensor, 'head'] | None, got a numpy float64 ndarray of shape (3,). Make a "
            "tensor of it: `torch.from_numpy(…)`.",
        ),
        (
            {"height": 0},
            "sweep(height=…) takes int from 1 to 65,536 | None, got 0 (int).",
        ),
        ({"max_sequence_length": 10**12}, "got 1000000000000 (int)."),
        ({"words": float}, "got the class float."),
    ],
)
def test_the_message_says_what_was_given_and_what_is_taken(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        sweep(None, **given)


def test_positional_arguments_are_looked_at() -> None:
    with pytest.raises(ArgumentError, match=r"^sweep\(words=…\) takes str"):
        sweep(None, 3)  # type: ignore[arg-type]


def test_a_pipeline_is_to_be_wrapped() -> None:
    class Pipe:
        scheduler = None

    with pytest.raises(ArgumentError, match=r"Wrap the pipeline: `HookedDiffusion\(pipe\)`"):
        sweep(Pipe())  # type: ignore[arg-type]


def test_what_is_taken_passes_unchanged() -> None:
    words, seeds = ["a", "b"], (1, 2)
    found = sweep(None, words, seeds=seeds, height=None, clip_skip="theirs to refuse")
    assert found["words"] is words
    assert found["seeds"] is seeds
    assert found["clip_skip"] == "theirs to refuse"


def test_pythons_own_errors_stay() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        sweep()  # type: ignore[call-arg]


def test_the_error_is_a_type_error_and_a_value_error() -> None:
    assert issubclass(ArgumentError, DiffusionLensError)
    assert issubclass(ArgumentError, TypeError)
    assert issubclass(ArgumentError, ValueError)


@public
def compare(first: Float[Tensor, " head"], second: Float[Tensor, " head"]) -> None:
    """Compare."""


def test_axes_of_one_name_have_one_length_in_a_call_and_not_between_calls() -> None:
    for count in (2, 3):
        compare(torch.ones(count), torch.ones(count))
    with pytest.raises(ArgumentError, match="other lengths than those of the same names"):
        compare(torch.ones(2), torch.ones(3))
    with pytest.raises(ArgumentError, match=r"got a torch float32 Tensor of shape \(2, 2\)\.$"):
        compare(torch.ones(2), torch.ones(2, 2))


class Things:
    """Things.

    Attributes:
        count: How many there are.
    """

    @public
    def __init__(self, count: Count) -> None:
        self.count = count

    @classmethod
    @public
    def of(cls, count: Count) -> Things:
        return cls(count)

    @public(more=int)
    def add(self, more: Any) -> int:
        return self.count + more

    @public
    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[str]:
        yield name

    @public
    def all(self, *names: str) -> tuple[str, ...]:
        return names


@public
@dataclass(frozen=True)
class Choice:
    """A choice.

    Attributes:
        share: Of all.
    """

    share: Fraction = 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Things(0), "Things(count=…) takes int from 1"),
        (lambda: Things(0), "count: How many there are."),
        (lambda: Things.of(True), "Things.of(count=…)"),
        (lambda: Things(1).add("a"), "Things.add(more=…) takes int, got 'a'"),
        (lambda: Things(1).opened(3), "Things.opened(name=…)"),  # type: ignore[arg-type]
        (lambda: Things(1).all("a", 3), "Things.all(*names) takes str, got 3"),  # type: ignore[arg-type]
        (lambda: Choice(2), "Choice(share=…) takes float from 0 to 1, got 2 (int). share: Of all."),
    ],
)
def test_methods_classes_and_contexts(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        call()


def test_methods_classes_and_contexts_work() -> None:
    assert Things.of(2).add(1) == 3
    assert Things(1).all("a", "b") == ("a", "b")
    assert Choice(1) == Choice(share=1.0)
    with Things(1).opened("x") as name:
        assert name == "x"


class Heirs(Things):
    """Things of another name."""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Things(1, 2, 3), "Things() takes "),  # type: ignore[call-arg]
        (lambda: Heirs(1, other=2), "Heirs() got an unexpected keyword argument 'other'"),  # type: ignore[call-arg]
        (lambda: Heirs(1).add(1, more=2), "Heirs.add() got multiple values for argument 'more'"),  # type: ignore[call-arg]
        (lambda: Heirs.of(), "Heirs.of() missing 1 required positional argument: 'count'"),  # type: ignore[call-arg]
        (lambda: Heirs(1).opened(), "Heirs.opened() missing 1 required "),  # type: ignore[call-arg]
    ],
)
def test_python_calls_a_method_by_the_class_that_its_user_holds(
    call: Callable[[], Any], said: str
) -> None:
    with pytest.raises(TypeError, match=rf"^{re.escape(said)}"):
        call()


def test_no_part_of_a_model_shows_in_its_errors() -> None:
    """In a process of its own: where shapes are checked, Python is not asked."""
    script = (
        "from diffusion_lens import HookedDiffusion\n"
        "model = object.__new__(HookedDiffusion)\n"
        "for name in ('hooks', 'paused', 'reset_hooks', 'hook_names', 'text_pattern_sites', "
        "'following'):\n"
        "    try:\n        getattr(model, name)(nothing=1)\n"
        "    except TypeError as error:\n        print(error)\n"
    )
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(shown) == 6
    for line in shown:
        assert re.match(r"HookedDiffusion\.\w+\(\) got an unexpected keyword", line), line


def test_no_part_of_a_model_shows_in_its_signatures() -> None:
    parts = {name: getattr(HookedDiffusion, name) for name in dir(HookedDiffusion)}
    for name, part in parts.items():
        if not name.startswith("_") and inspect.isfunction(part):
            own = inspect.signature(part).parameters["self"]
            assert own.annotation is inspect.Parameter.empty, name
    assert str(inspect.signature(HookedDiffusion.hooks)).startswith("(self, fwd_hooks: ")
    assert inspect.signature(HookedDiffusion.hooks).return_annotation == "Iterator[Self]"
    assert str(inspect.signature(AttentionMaps.load)) == "(folder: 'str | Path') -> 'Self'"


def test_signature_and_docstring_stay() -> None:
    assert list(inspect.signature(sweep).parameters)[:2] == ["model", "words"]
    assert (sweep.__doc__ or "").startswith("Sweep.")


def test_ranges_in_words() -> None:
    assert str(Between()) == "that is finite"
    assert str(Between(0, open_low=True)) == "above 0"
    assert str(Between(high=5, open_high=True)) == "below 5"


def test_settings_that_end_the_process_are_refused_before_a_run() -> None:
    with pytest.raises(ArgumentError, match="max_sequence_length=…"):
        Run("a cat", max_sequence_length=10**12)
    with pytest.raises(ArgumentError, match="num_inference_steps=…"):
        Run("a cat").with_(num_inference_steps=10**12)


def test_an_analysis_names_itself() -> None:
    with pytest.raises(ArgumentError, match=r"^activation_patching\(model=…\) takes HookedDiff"):
        activation_patching(None, "a", "b", sites="**")  # type: ignore[arg-type]


def test_the_border_imports_no_torch() -> None:
    code = "import sys, diffusion_lens.border; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
