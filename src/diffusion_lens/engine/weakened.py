"""Hooks in evaluations for which a guider changed the denoiser: refused where they saw nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.guiders import swapped_by
from diffusion_lens.engine.taps import Tap
from diffusion_lens.errors import EngineError, listing


class WeakenedEvaluations:
    """Watches over the hooks of one session.

    A layer that is left out runs none of its hooks, and attention that is left out has no pattern:
    a cache would lack them, an intervention would not be made, and nothing else would say so.
    """

    def __init__(self, denoiser: nn.Module, taps: Mapping[str, Sequence[Tap]]) -> None:
        """Watch over these hooks."""
        self.denoiser = denoiser
        self.taps = [tap for some in taps.values() for tap in some]
        self.shown: dict[int, int] = {}

    def begins(self, evaluation: Evaluation) -> None:
        """Note which hooks wait for an evaluation that a guider changed the denoiser for.

        Raises:
            EngineError: If streams are handed on in each other's place there.
        """
        prepared, self.shown = evaluation.run.prepared, {}
        if prepared is None or not prepared.changed:
            return
        self.shown = {
            at: _shown(tap) for at, tap in enumerate(self.taps) if _waits(tap, evaluation)
        }
        path = swapped_by(self.denoiser, prepared.changed) if self.shown else None
        if path is not None:
            raise EngineError(
                f"{_where(evaluation)} {prepared.guider} leaves out {path}, in whose place this "
                "version of diffusers hands on image and text the wrong way round, so that hooks "
                f"would be shown one for the other; {_remedy(evaluation)}, or have the guider "
                "leave out attention or MLPs alone (LayerSkipConfig(…, skip_ff=False))"
            )

    def ends(self, evaluation: Evaluation) -> None:
        """Refuse the evaluation if one of them saw nothing.

        Raises:
            EngineError: Naming it.
        """
        shown, self.shown = self.shown, {}
        silent = [self.taps[at] for at, before in shown.items() if _shown(self.taps[at]) == before]
        if silent:
            prepared = evaluation.run.prepared
            assert prepared is not None
            raise EngineError(
                f"{silent[0].registration!r} waits for {silent[0].point.name}, which does not run "
                f"{_where(evaluation)} {prepared.guider} changes {listing(list(prepared.changed))};"
                f" {_remedy(evaluation)}, or leave these blocks out"
            )


def _waits(tap: Tap, evaluation: Evaluation) -> bool:
    if tap.point.module == "scheduler" or tap.registration.backward:
        return False
    return any(tap.active(evaluation, branch) for branch, _ in evaluation.rows)


def _shown(tap: Tap) -> int:
    fired = tap.registration.fired[tap.point.name]
    return -1 if fired.absent else fired.shown


def _where(evaluation: Evaluation) -> str:
    return f"in branch {evaluation.rows[0][0]!r} of step {evaluation.step}, for which"


def _remedy(evaluation: Evaluation) -> str:
    kept = "cond" if evaluation.rows[0][0] != "cond" else "uncond"
    return f"keep the hook to another branch with Site(…, branch={kept!r})"
