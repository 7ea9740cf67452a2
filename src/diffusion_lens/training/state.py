"""The state of a training run: it can be stopped at any moment and goes on later."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from diffusion_lens.errors import TrainingStateError

STATE_FILE = "state.safetensors"
"""The state, and in its header how far the run has come: one file, so that they cannot differ."""

PROGRESS_FILE = "progress.json"
"""The progress once more, to be read by people; of an older state the only one."""


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
        folder: Where to; made if missing. A half-written state never replaces a whole one, and
            the progress lies in the same file, so that a run killed anywhere finds both or neither.
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
    reached = json.dumps(asdict(progress))
    about = {"step": str(progress.step), "progress": reached}
    save_file(tensors, folder / f"{STATE_FILE}.part", metadata=about)
    (folder / f"{PROGRESS_FILE}.part").write_text(reached, encoding="utf-8")
    for file in (STATE_FILE, PROGRESS_FILE):
        _put_in_place(folder / f"{file}.part", folder / file)


def _put_in_place(written: Path, file: Path) -> None:
    """Rename a file over another once its bytes are on the disk."""
    with written.open("rb+") as held:
        os.fsync(held.fileno())
    written.replace(file)


def refuse_other_model(folder: Path, *, model: str, trained: Mapping[str, Tensor]) -> None:
    """Say so, before anything is read, where a folder has no state, or another model's.

    Args:
        folder: Of a run.
        model: Name of the recipe.
        trained: Name to parameter.

    Raises:
        TrainingStateError: If it is not this model's, or the file cannot be read.
    """
    names, _ = _header(folder)
    kept = {name.removeprefix("value.") for name in names if name.startswith("value.")}
    if kept != set(trained):
        raise TrainingStateError(f"{folder} holds the state of another model than {model}")


def _header(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The names of a state's tensors, and what is said about them."""
    file = folder / STATE_FILE
    if not file.exists():
        raise TrainingStateError(f"{folder} has no {STATE_FILE}; give the folder of a run")
    try:
        with safe_open(file, framework="pt") as state:
            return list(state.keys()), state.metadata() or {}
    except SafetensorError as error:
        raise TrainingStateError(
            f"{file} is damaged ({error}); take a copy of it, or begin anew in another folder"
        ) from error


def _progress(folder: Path) -> Progress:
    """How far the run had come, from the state itself; of an older one from the file beside it."""
    _, about = _header(folder)
    if "progress" in about:
        return Progress(**json.loads(about["progress"]))
    file = folder / PROGRESS_FILE
    try:
        found = Progress(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingStateError(
            f"{file} cannot be read ({error}), and {STATE_FILE} beside it, an older one, does not "
            "hold what was in it; take a copy of it"
        ) from error
    step = about.get("step", str(found.step))
    if step != str(found.step):
        raise TrainingStateError(
            f"{folder / STATE_FILE} is of step {step}, {PROGRESS_FILE} beside it of step "
            f"{found.step}: the run was killed between writing them. Take a copy of both, or, if "
            f'samples and seconds do not matter, write {{"step": {step}}} into {PROGRESS_FILE}'
        )
    return found


def load_state(folder: Path, *, average: Average, optimizers: Sequence[Optimizer]) -> Progress:
    """Go on from a state that `save_state` wrote.

    Args:
        folder: Where it lies.
        average: Receives parameters and average, in place.
        optimizers: Receive the moments.

    Returns:
        How far the run had come.

    Raises:
        TrainingStateError: If no state lies there, or one that is damaged, or of another step than
            its progress.
        KeyError: If it is the state of another architecture.
    """
    progress = _progress(folder)
    tensors = load_file(folder / STATE_FILE)
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
