"""Files are replaced whole or not at all."""

import os
import signal
import sys
from pathlib import Path

import pytest

from diffusion_lens.whole_files import whole_file, write_whole


def test_a_file_is_written_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "scores of 漢.json"
    write_whole(file, "one")
    write_whole(str(file), "größer")
    assert file.read_text(encoding="utf-8") == "größer"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_file_before(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "before")
    with pytest.raises(RuntimeError, match="stop"), whole_file(file) as beside:
        beside.write_text("half")
        assert file.read_text() == "before"
        raise RuntimeError("stop")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_written_beside_keeps_the_ending_and_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with whole_file(file) as beside:
        assert beside.parent == tmp_path
        assert beside.suffix == ".safetensors"
        assert str(os.getpid()) in beside.name
        beside.write_bytes(b"x")
    assert file.read_bytes() == b"x"


def test_nothing_written_is_an_error_and_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "before")
    with pytest.raises(FileNotFoundError), whole_file(file):
        pass
    assert file.read_text() == "before"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_process_killed_in_the_middle_leaves_the_file_before(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "before")
    child = os.spawnv(
        os.P_WAIT,
        sys.executable,
        [
            sys.executable,
            "-c",
            "import os, sys\n"
            "from diffusion_lens.whole_files import whole_file\n"
            "with whole_file(sys.argv[1]) as beside:\n"
            "    beside.write_text('half')\n"
            "    os.kill(os.getpid(), 9)",
            str(file),
        ],
    )
    assert child == -signal.SIGKILL
    assert file.read_text() == "before"
