"""What the contract found: failures, how much was checked, what could not be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

CLAUSES = {
    1: "the output is bit-identical without hooks and with hooks that only read",
    2: "every hook point fires once per evaluation, stream and branch",
    3: "pattern rows sum to 1, and pattern @ v is z",
    4: "a replaced value changes the output, unless the point is declared dead",
    5: "the head axis is the head axis",
    6: "residual, updates and results add up",
    7: "each stream is the stream that it is called",
    8: "nothing that runs is left out, and modules are what they are called",
}
"""The clauses by number."""


@dataclass(frozen=True)
class Failure:
    """One place where a clause does not hold.

    Attributes:
        clause: Number of the clause.
        where: The hook point, or the module.
        expected: What the clause says.
        found: What there was.
    """

    clause: int
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: expected {self.expected}; found {self.found}"


class Doubt(Enum):
    """Why a comparison says nothing certain in the precision that it was made in."""

    ROUNDING = "it differs by no more than rounding can explain"
    LOST = "it holds, but what is compared is no larger than rounding"
    SILENT = "nothing changes, which a small effect that is rounded away would look like"


@dataclass(frozen=True)
class ContractReport:
    """What was checked of one model.

    Attributes:
        model: Class of the denoiser and its precision.
        checked: For each clause the number of comparisons made.
        failures: Where a clause does not hold, by clause.
        skipped: What could not be checked, and why.
    """

    model: str
    checked: dict[int, int]
    failures: tuple[Failure, ...]
    skipped: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every clause holds as far as it was checked."""
        return not self.failures

    @property
    def failed(self) -> tuple[int, ...]:
        """The numbers of the clauses that do not hold."""
        return tuple(sorted({failure.clause for failure in self.failures}))

    def __str__(self) -> str:
        """The clauses, one line each, with failures below theirs."""
        lines = [f"contract of {self.model}"]
        for number, text in CLAUSES.items():
            failures = [failure for failure in self.failures if failure.clause == number]
            state = f"{len(failures)} failures" if failures else "holds"
            lines.append(f"({number}) {text}: {state}, {self.checked.get(number, 0)} checks")
            lines.extend(f"    {failure}" for failure in failures)
        lines.extend(f"not checked: {reason}" for reason in self.skipped)
        return "\n".join(lines)


@dataclass
class Findings:
    """Collects what the clauses find.

    Attributes:
        checked: Comparisons made, by clause.
        failures: Where a clause does not hold.
        doubts: Comparisons that their precision cannot decide.
        skipped: What could not be checked; a dict, since reasons come up more than once.
    """

    checked: Counter[int] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    doubts: list[tuple[Failure, Doubt]] = field(default_factory=list)
    skipped: dict[str, None] = field(default_factory=dict)

    def check(
        self,
        holds: bool,
        clause: int,
        where: str,
        *,
        expected: str,
        found: str,
        doubt: Doubt | None = None,
    ) -> None:
        """Count one comparison, and keep it where it fails or says nothing certain."""
        self.checked[clause] += 1
        failure = Failure(clause, where, expected, found)
        if doubt is not None:
            self.doubts.append((failure, doubt))
        elif not holds:
            self.failures.append(failure)

    def skip(self, reason: str) -> None:
        """Note what could not be checked."""
        self.skipped[reason] = None

    def report(self, model: str) -> ContractReport:
        """The collected findings, failures in the order of the clauses."""
        failures = tuple(sorted(self.failures, key=lambda failure: failure.clause))
        return ContractReport(model, dict(self.checked), failures, tuple(self.skipped))
