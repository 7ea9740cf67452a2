"""What a written description still has to say."""

from __future__ import annotations

from typing import NoReturn

from diffusion_lens.errors import UnsupportedModelError


def todo(question: str) -> NoReturn:
    """Stand where an answer has to be written; the description cannot be imported until it is.

    Args:
        question: What has to be said, with the values that there are.

    Raises:
        UnsupportedModelError: Always.
    """
    raise UnsupportedModelError(f"this description is not finished: {question}")
