"""Files that are read in a process of their own: the same answers as in this one, and an end whatever they do."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mini_loras import lora_bytes, write_lora
from schnell.adapters import ModelShape, convert_adapter, inspect_adapter, read_model_shape
from schnell.adapters.apart import convert_apart, inspect_apart
from schnell.errors import AdapterError, DiskError
from schnell.models.folder import embedded_home
from schnell.side_processes import SideProcesses
from waiting import wait_for_state

MAX = 10**8


@pytest.fixture
def shape() -> ModelShape:
    return read_model_shape(embedded_home() / "schnell-mini")


async def test_a_file_converts_to_the_same_bytes(tmp_path: Path, shape: ModelShape) -> None:
    source = write_lora(tmp_path / "a.safetensors")
    here = convert_adapter(source, tmp_path / "here", shape=shape)
    apart = await convert_apart(source, tmp_path / "apart", SideProcesses(), shape=shape, max_bytes=MAX)
    assert apart == replace(here, path=apart.path)
    assert apart.path.read_bytes() == here.path.read_bytes()
    assert await inspect_apart(source, SideProcesses(), max_bytes=MAX) == inspect_adapter(source)


async def test_what_is_refused_here_is_refused_apart_in_the_same_words(tmp_path: Path, shape: ModelShape) -> None:
    (tmp_path / "wide.safetensors").write_bytes(lora_bytes(1, width=3072))
    with pytest.raises(AdapterError, match="it is made for width 3072"):
        await convert_apart(
            tmp_path / "wide.safetensors", tmp_path / "out", SideProcesses(), shape=shape, max_bytes=MAX
        )
    (tmp_path / "no.safetensors").write_bytes(b"<html>")
    assert (await inspect_apart(tmp_path / "no.safetensors", SideProcesses(), max_bytes=MAX)).problem


async def test_a_folder_that_cannot_be_written_is_the_servers_fault(tmp_path: Path, shape: ModelShape) -> None:
    (tmp_path / "file").touch()
    source = write_lora(tmp_path / "a.safetensors")
    with pytest.raises(DiskError):
        await convert_apart(source, tmp_path / "file" / "out", SideProcesses(), shape=shape, max_bytes=MAX)


async def test_a_process_that_dies_is_a_file_that_is_refused(
    tmp_path: Path, shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(AdapterError, match="more time or memory"):
        await convert_apart(
            write_lora(tmp_path / "a.safetensors"), tmp_path / "out", SideProcesses(), shape=shape, max_bytes=MAX
        )


async def test_who_gives_up_leaves_no_process_behind(
    tmp_path: Path, shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    source = write_lora(tmp_path / "a.safetensors")
    converting = asyncio.create_task(
        convert_apart(source, tmp_path / "out", SideProcesses(), shape=shape, max_bytes=MAX)
    )
    async with asyncio.timeout(20):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    converting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await converting
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are paused on Linux alone")
def test_a_process_that_is_paused_ends_with_a_server_that_is_killed(tmp_path: Path, shape: ModelShape) -> None:
    source = write_lora(tmp_path / "a.safetensors")
    code = f"""
import asyncio
from pathlib import Path
from schnell.adapters.apart import inspect_apart
from schnell.side_processes import SideProcesses

async def main():
    beside = SideProcesses()
    reading = asyncio.create_task(inspect_apart(Path({str(source)!r}), beside, max_bytes=10**9))
    while not beside._processes:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)  # past its first lines
    with beside.step():
        print(Path("/proc/thread-self/children").read_text(), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        process = int(server.stdout.readline())
        try:
            wait_for_state(process, "T")
        finally:
            server.kill()
    wait_for_state(process, None, "Z")
