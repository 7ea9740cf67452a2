"""The state of a training run: it can be stopped at any moment and goes on later."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

STATE_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"


_MOMENTS = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


@dataclass
class Progress:
    """How far a run has come.

    Args:
        step: Steps taken.
        samples: Samples seen.
        seconds: Time spent training, without sampling and grading.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0


class Average:
    """A moving average of parameters, for export and grading.

    Args:
        parameters: Name to parameter, as trained.
        decay: Largest decay; early on it is smaller, so that the random start is forgotten.
    """

    def __init__(self, parameters: dict[str, Tensor], *, decay: float) -> None:
        """Start at the parameters' present values."""
        self.parameters = parameters
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    def update(self, step: int) -> None:
        """Move towards the present parameters.

        Args:
            step: Steps taken in all.
        """
        share = 1 - min(self.decay, (1 + step) / (20 + step))
        values = list(self.values.values())
        torch._foreach_lerp_(values, [p.detach() for p in self.parameters.values()], share)

    def swap(self) -> None:
        """Exchange averages and parameters; a second call undoes the first."""
        for name, value in self.parameters.items():
            kept = value.detach().clone()
            value.data.copy_(self.values[name])
            self.values[name].copy_(kept)


def _owner(parameter: Tensor, optimizers: Sequence[Optimizer]) -> Optimizer:
    for optimizer in optimizers:
        if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
            return optimizer
    raise AssertionError("every trained parameter belongs to an optimizer")


def _moments(parameter: Tensor, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    kept = _owner(parameter, optimizers).state[parameter]
    return {name: value for name, value in kept.items() if name != "step"}


def save_state(
    folder: Path, *, average: Average, optimizers: Sequence[Optimizer], progress: Progress
) -> None:
    """Write parameters (fp32), their average (as a bf16 difference) and the moments (bf16).

    Args:
        folder: Where to; made if missing. A half-written state never replaces a whole one.
        average: The parameters and their average.
        optimizers: Together they hold the same parameters.
        progress: How far the run has come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, value in average.parameters.items():
        tensors[f"value.{name}"] = value.detach().cpu().contiguous()
        tensors[f"average.{name}"] = average.values[name].sub(value.detach()).bfloat16().cpu()
        for moment, kept in _moments(value, optimizers).items():
            tensors[f"{moment}.{name}"] = kept.bfloat16().cpu()
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, folder / f"{STATE_FILE}.part", metadata={"step": str(progress.step)})
    (folder / f"{PROGRESS_FILE}.part").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for file in (STATE_FILE, PROGRESS_FILE):
        (folder / f"{file}.part").replace(folder / file)


def refuse_other_model(folder: Path, *, model: str, trained: Mapping[str, Tensor]) -> None:
    """Say so, before anything is read, where a folder has no state, or another model's.

    Args:
        folder: Of a run.
        model: Name of the recipe.
        trained: Name to parameter.

    Raises:
        ValueError: If it is not this model's.
    """
    file = folder / STATE_FILE
    if not file.exists():
        raise ValueError(f"{folder} has no {STATE_FILE}; give the folder of a run")
    with safe_open(file, framework="pt") as state:
        names = state.keys()
    kept = {name.removeprefix("value.") for name in names if name.startswith("value.")}
    if kept != set(trained):
        raise ValueError(f"{folder} holds the state of another model than {model}")


def load_state(folder: Path, *, average: Average, optimizers: Sequence[Optimizer]) -> Progress:
    """Go on from a state that `save_state` wrote.

    Args:
        folder: Where it lies.
        average: Receives parameters and average, in place.
        optimizers: Receive the moments.

    Returns:
        How far the run had come.

    Raises:
        FileNotFoundError: If no state lies there.
        KeyError: If it is the state of another architecture.
    """
    tensors = load_file(folder / STATE_FILE)
    progress = Progress(**json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
    for name, value in average.parameters.items():
        value.data.copy_(tensors[f"value.{name}"])
        difference = tensors[f"average.{name}"].float().to(value.device)
        average.values[name].copy_(value.detach() + difference)
        moments = {
            moment: tensors[f"{moment}.{name}"].float().to(value.device)
            for moment in _MOMENTS[type(_owner(value, optimizers))]
            if f"{moment}.{name}" in tensors
        }
        if moments:
            state = _owner(value, optimizers).state
            state[value] = {"step": torch.tensor(float(progress.step)), **moments}
    return progress
