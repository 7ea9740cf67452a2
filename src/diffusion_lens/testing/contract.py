"""The contract of an architecture: eight clauses that every family must keep.

A mislabelled head axis or swapped streams pass every check of shapes and of reading; they are
caught by editing the same thing in two ways, by a hook and in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from diffusion_lens.border import public
from diffusion_lens.errors import ContractError
from diffusion_lens.testing.clauses_description import (
    middles_are_named,
    neurons_enter_the_last_layer,
    products_are_described,
    time_is_time,
    turns_are_turns,
)
from diffusion_lens.testing.clauses_editing import edits_reach_the_output
from diffusion_lens.testing.clauses_experts import experts_are_chosen
from diffusion_lens.testing.clauses_heads import heads_are_columns
from diffusion_lens.testing.clauses_products import edits_keep_to_their_head, patterns_make_z
from diffusion_lens.testing.clauses_reading import (
    model_is_as_it_was,
    output_is_untouched,
    points_fire_once,
)
from diffusion_lens.testing.clauses_residual import edits_add_up, results_add_up, updates_add_up
from diffusion_lens.testing.clauses_streams import streams_are_what_they_are_called
from diffusion_lens.testing.precise import PreciseCopy, settle
from diffusion_lens.testing.report import ContractReport, Findings
from diffusion_lens.testing.subject import Subject

CHECKS: tuple[tuple[int, Callable[[Subject, Findings], None]], ...] = (
    (1, output_is_untouched),
    (2, points_fire_once),
    (3, patterns_make_z),
    (4, edits_reach_the_output),
    (5, edits_keep_to_their_head),
    (5, heads_are_columns),
    (6, updates_add_up),
    (6, edits_add_up),
    (6, results_add_up),
    (7, streams_are_what_they_are_called),
    (8, products_are_described),
    (8, turns_are_turns),
    (8, neurons_enter_the_last_layer),
    (8, middles_are_named),
    (8, experts_are_chosen),
    (8, time_is_time),
    (1, model_is_as_it_was),
)
"""The checks with their clauses."""


@public
def inspect_architecture(
    denoiser: nn.Module, inputs: Mapping[str, Any], *, points: Any = None
) -> ContractReport:
    """Check the contract and report what was found, failures among it.

    Args:
        denoiser: A bare denoiser of a registered architecture, in evaluation mode.
        inputs: The keyword arguments of one call. A batch of two or more samples also shows
            whether guidance branches are told apart.
        points: Which hook points get forwards of their own: names, patterns or predicates. By
            default one of every kind in every kind of block; reading is checked on all.

    Returns:
        The report.

    Raises:
        UnsupportedModelError: If the denoiser is of no known family or precision.
        UnknownHookPointError: If `points` matches nothing.
    """
    subject = Subject(denoiser, inputs, points=points)
    findings, precise = Findings(), PreciseCopy(subject)
    for clause, check in CHECKS:
        try:
            check(subject, findings)
        except Exception as error:  # whatever a wrong description leads to is a finding
            found = f"{type(error).__name__}: {error}"
            findings.check(False, clause, check.__name__, expected="a run", found=found)
        settle(precise, check, findings)
    precision = str(subject.model.dtype).removeprefix("torch.")
    return findings.report(f"{type(subject.model.denoiser).__name__} in {precision}")


@public
def check_architecture(
    denoiser: nn.Module, inputs: Mapping[str, Any], *, points: Any = None
) -> ContractReport:
    """Check that a denoiser keeps the contract of its architecture.

    Passing says that names, axes, heads and streams are what they are called, for this model and
    this call. It does not say that every option of the family is covered: check a model with each.

    Args:
        denoiser: A bare denoiser of a registered architecture, in evaluation mode.
        inputs: The keyword arguments of one call; `capture_inputs` takes them from a pipeline,
            `tiny_denoiser` makes both.
        points: Which hook points get forwards of their own, as in `inspect_architecture`.

    Returns:
        The report, without failures. What could not be checked is in `.skipped`.

    Raises:
        ContractError: If a clause fails; the message lists each failure with its hook point, what
            was expected and what was found.
        UnsupportedModelError: If the denoiser is of no known family or precision.
        UnknownHookPointError: If `points` matches nothing.
    """
    report = inspect_architecture(denoiser, inputs, points=points)
    if not report.ok:
        raise ContractError(str(report))
    return report
