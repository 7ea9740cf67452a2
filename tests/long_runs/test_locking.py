"""One process at a time in a folder; a killed one leaves nothing that blocks."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from diffusion_lens.errors import ResultError
from diffusion_lens.long_runs import locking
from diffusion_lens.long_runs.locking import only_process


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with only_process(file, argument="checkpoint"):
        said = rf"checkpoint=.* in use by another run \(process {os.getpid()}\)"
        with pytest.raises(ResultError, match=said), only_process(file, argument="checkpoint"):
            raise AssertionError
        assert file.exists()  # the refused one leaves it
    assert not file.exists()
    with only_process(file, argument="checkpoint"):
        assert file.exists()


def test_a_failed_run_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), only_process(tmp_path / ".lock", argument="checkpoint"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_killed_run_blocks_nobody(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    child = os.fork()
    if child == 0:
        with only_process(file, argument="checkpoint"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert file.read_text() == str(child)
    with only_process(file, argument="checkpoint"):
        assert file.read_text() == str(os.getpid())
    assert not file.exists()


def test_a_place_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with (
        pytest.raises(ResultError, match=r"cannot be written to .* a folder of one's own"),
        only_process(tmp_path / ".lock", argument="checkpoint"),
    ):
        raise AssertionError
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLocks:
        LOCK_EX, LOCK_NB = 2, 4

        @staticmethod
        def flock(*_: Any) -> None:
            raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(locking, "_locks", NoLocks)
    with (
        pytest.warns(UserWarning, match="without locks .* no second run"),
        only_process(tmp_path / ".lock", argument="checkpoint"),
    ):
        pass
    monkeypatch.setattr(locking, "_locks", lambda: None)
    with only_process(tmp_path / ".lock", argument="checkpoint"):
        pass
