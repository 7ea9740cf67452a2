"""What every test can rely on: no network, one thread, the same random numbers each time."""

import os
import random
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from diffusion_lens.errors import MissingClassError

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

# Read when torch and tokenizers are imported, so they are set before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the hub out of reach unless tests marked `network` were asked for."""
    if "network" in config.option.markexpr.replace("not network", ""):
        return
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip what needs a class that an older diffusers than the pinned one does not have."""
    try:
        return (yield)
    except (ImportError, AttributeError, MissingClassError) as error:
        if _is_older_than_pinned() and "diffusers" in str(error):
            pytest.skip(str(error))
        raise


def _is_older_than_pinned() -> bool:
    import diffusers
    from packaging.version import Version

    pinned = re.search(r"^diffusers==(.+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    return pinned is not None and Version(diffusers.__version__) < Version(pinned[1])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    # Deterministic algorithms stay off: outputs must be bit-identical under users' own settings.
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (third-party code draws from the global generator)
    torch.manual_seed(0)
    grad_enabled, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    yield
    torch.set_grad_enabled(grad_enabled)
    torch.set_default_dtype(dtype)
