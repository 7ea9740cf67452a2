"""The part of a model card that must agree with the weights, written by a program."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lens.toys.shapes.evaluation import Report

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def measured(facts: Mapping[str, Any]) -> str:
    """Grades, training so far and checksums of a model as Markdown.

    Args:
        facts: What `loading.card` gives, after grading.

    Returns:
        The text between the markers of a model's page.
    """
    total = sum(count for group, count in facts["counts"].items() if ", all" not in group)
    lines = [
        f"Trained on {facts['samples']:,} samples in {facts['step']:,} steps.",
        f"Share of {total} held-out captions that are right, in per cent, at guidance "
        f"{facts['guidance']} and {facts['sample_steps']} steps:",
        "",
        Report(facts["shares"], facts["counts"]).table(),
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *(f"| `{file}` | `{digest}` |" for file, digest in facts["sha256"].items()),
    ]
    return "\n".join(lines)


def update_page(page: Path, facts: Mapping[str, Any]) -> None:
    """Replace what stands between the markers of a model's page.

    Args:
        page: A Markdown file with both markers.
        facts: What `loading.card` gives, after grading.

    Raises:
        ValueError: If the page lacks the markers.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} lacks the lines {BEGIN!r} and {END!r}; add them where grades go")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{BEGIN}\n{measured(facts)}\n{END}{tail}", encoding="utf-8")
