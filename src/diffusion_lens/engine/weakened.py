"""Hooks in evaluations that leave parts of the denoiser out: refused where they see nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.guiders import swapped_by
from diffusion_lens.engine.taps import Tap
from diffusion_lens.errors import EngineError, listing


class WeakenedEvaluations:
    """Watches over the hooks of one session.

    A layer that is left out runs none of its hooks, and attention that is left out has no pattern:
    a cache would lack them, an intervention would not be made, and nothing else would say so.
    """

    def __init__(self, taps: Mapping[str, Sequence[Tap]]) -> None:
        """Watch over these hooks."""
        self.taps = [tap for some in taps.values() for tap in some]
        self.shown: dict[int, int] = {}

    def begins(self, evaluation: Evaluation) -> None:
        """Note which hooks wait for an evaluation that a guider changed the denoiser for.

        Raises:
            EngineError: If streams are handed on in each other's place there, or a hook waits for
                what an argument of the denoiser leaves out.
        """
        self.shown = {}
        self._refuse_left_out(evaluation)
        if not evaluation.changed:
            return
        path = swapped_by(evaluation.denoiser, evaluation.changed)
        if self.taps and path is not None:
            raise EngineError(
                f"{_where(evaluation)} leaves out {path}: this version of diffusers hands on image "
                "and text the wrong way round in its place, and the blocks behind take one for the "
                "other; have the guider leave out blocks that return the image alone, or MLPs "
                "alone (`LayerSkipConfig(…, skip_attention=False)`)"
            )
        waiting = (number for number, tap in enumerate(self.taps) if _waits(tap, evaluation))
        self.shown = {number: _shown(self.taps[number]) for number in waiting}

    def _refuse_left_out(self, evaluation: Evaluation) -> None:
        """Refuse hooks at modules that do not run with an argument of the denoiser.

        Raises:
            EngineError: Naming the first, and the argument.
        """
        for name, one in evaluation.beside.items():
            for tap in self.taps if one.left_out else ():
                inside = any(f".{path}." in f"{tap.point.module}." for path in one.left_out)
                if inside and _waits(tap, evaluation):
                    raise EngineError(
                        f"{tap.registration!r} waits for {tap.point.name}, which does not run "
                        f"{_when(evaluation)}, where {name}= leaves out {listing(one.left_out)} "
                        f"of every block; {_remedy(evaluation)}, or leave these points out"
                    )

    def ends(self, evaluation: Evaluation) -> None:
        """Refuse the evaluation if one of them saw nothing.

        Raises:
            EngineError: Naming it.
        """
        shown, self.shown = self.shown, {}
        before = shown.items()
        silent = [self.taps[number] for number, seen in before if _shown(self.taps[number]) == seen]
        if silent:
            raise EngineError(
                f"{silent[0].registration!r} waits for {silent[0].point.name}, which does not run "
                f"{_where(evaluation)} changes {listing(list(evaluation.changed))}; "
                f"{_remedy(evaluation)}, or leave these blocks out"
            )


def _waits(tap: Tap, evaluation: Evaluation) -> bool:
    if tap.point.module == "scheduler" or tap.registration.backward:
        return False
    return any(tap.active(evaluation, branch) for branch, _ in evaluation.rows)


def _shown(tap: Tap) -> int:
    fired = tap.registration.fired[tap.point.name]
    return -1 if fired.absent else fired.shown


def _where(evaluation: Evaluation) -> str:
    prepared = evaluation.run.prepared
    guider = "a guider" if prepared is None else prepared.guider
    return f"{_when(evaluation)}, for which {guider}"


def _when(evaluation: Evaluation) -> str:
    return f"in branch {evaluation.rows[0][0]!r} of step {evaluation.step}"


def _remedy(evaluation: Evaluation) -> str:
    kept = "cond" if evaluation.rows[0][0] != "cond" else "uncond"
    return f"keep the hook to another branch with Site(…, branch={kept!r})"
