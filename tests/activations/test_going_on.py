"""A store is the same however it came about: at once, after a kill, by two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.activations import ActivationStore, collect, collecting
from diffusion_lens.activations.files import ShardWriter
from diffusion_lens.errors import StoreError

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")]
GIVEN: dict[str, Any] = {
    "sites": ["blocks.2.img.hook_resid_post", "mid.hook_h"],
    "num_inference_steps": 2,
    "tokens": 5,
    "latents": True,
    "images": True,
}

SCRIPT = """
import sys, time
from diffusion_lens import HookedDiffusion
from diffusion_lens.activations import collect, collecting
from tests.activations.test_going_on import GIVEN, PROMPTS

collecting.FILE_BYTES = 1
out, share, of, slow = sys.argv[1:]
model = HookedDiffusion.toy("shapes-unet")
hooks = [("mid.hook_h", lambda value, hook: time.sleep(float(slow)))]
hooks[0][1].read_only = True
with model.hooks(hooks):
    collect(model, PROMPTS, out=out, shard=(int(share), int(of)), **GIVEN)
"""


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "FILE_BYTES", 1)  # a shard for each batch


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion.toy("shapes-unet")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def process(out: Path, share: int = 0, of: int = 1, slow: float = 0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *map(str, (out, share, of, slow))]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": paths})


def test_what_failed_goes_on_and_is_the_same(
    model: HookedDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(model, PROMPTS, out=tmp_path / "whole", **GIVEN)
    assert len(whole.shards) == len(PROMPTS)
    finish, ended = ShardWriter.finish, []

    def dies(writer: ShardWriter) -> None:
        if writer.number == 2 and not ended:
            ended.append(True)
            writer.flush()
            raise KeyboardInterrupt
        finish(writer)

    monkeypatch.setattr(ShardWriter, "finish", dies)
    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        collect(model, PROMPTS, out=out, **GIVEN)
    with pytest.raises(StoreError, match=r"not whole: 2 of 4 shards .* partial=True"):
        ActivationStore.open(out)
    part = ActivationStore.open(out, partial=True)
    assert len(part) == len(whole) // 2
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-000001*")}
    collect(model, PROMPTS, out=out, **GIVEN)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("shard-000001*")}


@pytest.mark.slow
def test_what_was_killed_goes_on_and_is_the_same(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    running = process(out, slow=0.4)
    deadline = time.monotonic() + 120
    while not (out / "shard-000001.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (out / "shard-000001.parquet").exists()
    assert not (out / "shard-000003.parquet").exists()
    (out / f".shard-000002-000.{running.pid}.partial.safetensors").write_bytes(b"half")
    again = process(out)
    assert again.wait() == 0
    fresh = process(tmp_path / "whole")
    assert fresh.wait() == 0
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    both = [process(tmp_path / "two", share, 2) for share in (0, 1)]
    assert [one.wait() for one in both] == [0, 0]
    one = process(tmp_path / "one")
    assert one.wait() == 0
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


@pytest.mark.slow
def test_shares_of_one_process_after_the_other_make_the_same(
    model: HookedDiffusion, tmp_path: Path
) -> None:
    one = collect(model, PROMPTS, out=tmp_path / "one", **GIVEN)
    part = collect(model, PROMPTS, out=tmp_path / "two", shard=(1, 2), **GIVEN)
    assert [shard.number for shard in part.shards] == [1, 3]
    # Another number of processes may finish it.
    collect(model, PROMPTS, out=tmp_path / "two", **GIVEN)
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")
    width = one.where(site="mid.hook_h")
    again = ActivationStore.open(tmp_path / "two").where(site="mid.hook_h")
    assert torch.equal(width.rows().values, again.rows().values)


def test_one_collection_at_a_time(model: HookedDiffusion, tmp_path: Path) -> None:
    messages = []

    def second(value: Any, hook: Any) -> None:
        for share in ((0, 1), (1, 2), (0, 3)):
            if not messages[3:]:
                messages.append(_refused(other, tmp_path, share))

    second.read_only = True  # type: ignore[attr-defined]
    other = HookedDiffusion.toy("shapes-unet")
    with model.hooks([("mid.hook_h", second)]):
        collect(model, PROMPTS[:1], out=tmp_path, **GIVEN)
    assert all("in use by another run" in one for one in messages[:3])


def _refused(model: HookedDiffusion, out: Path, share: tuple[int, int]) -> str:
    with pytest.raises(StoreError) as refused:
        collect(model, PROMPTS[:1], out=out, shard=share, **GIVEN)
    return str(refused.value)


def test_a_full_disk_loses_nothing(
    model: HookedDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = ShardWriter.write_tensors, []

    def full(writer: ShardWriter, name: str, tensors: Any) -> None:
        count.append(name)
        if len(count) == 4:
            from diffusion_lens.activations import files

            with files.writing(writer.folder):
                raise OSError(28, "No space left on device")
        write(writer, name, tensors)

    monkeypatch.setattr(ShardWriter, "write_tensors", full)
    with pytest.raises(StoreError, match=r"No space left on device.*make room .* it goes on"):
        collect(model, PROMPTS, out=tmp_path, **GIVEN)
    store = collect(model, PROMPTS, out=tmp_path, **GIVEN)
    store.check()
    assert len(store.shards) == len(PROMPTS)
