import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schnell.errors import ConfigurationError
from schnell.file_locks import LockedFiles, describe_holder, find_old_files, hold_files, lock_file, lock_state

HOLD = """
import sys, pathlib
from schnell.file_locks import lock_file
lock = lock_file(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_held_once_names_its_process_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "server.lock"
    with holder(path) as process:
        assert lock_state(path) == "held"
        assert lock_file(path) is None
        assert describe_holder(path).startswith(f"process {process.pid} on ")
        process.kill()
        process.wait()
        assert lock_state(path) == "free"
        lock = lock_file(path)
    assert lock is not None
    assert describe_holder(path).startswith(f"process {os.getpid()} on ")
    lock.release()
    assert lock_state(path) == "free"


def test_a_refusal_is_one_line_with_process_and_folder_and_leaves_nothing_locked(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "server.lock", tmp_path / "b" / "server.lock"
    with holder(second) as process:
        with pytest.raises(ConfigurationError) as caught, hold_files([first, second]):
            raise AssertionError
        assert f"{second.parent} is in use: process {process.pid} on " in caught.value.message
        assert "\n" not in caught.value.message
        assert lock_state(first) == "free"
    with hold_files([first, second]):
        assert lock_state(second) == "held"


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        lock_file(tmp_path / "file" / "server.lock")


def test_who_lives_on_a_folder_is_known_by_the_locks(tmp_path: Path) -> None:
    ours, command = LockedFiles(tmp_path), LockedFiles(tmp_path)
    ours.claim("we")
    assert not ours.any_other()
    assert command.any_other()
    with holder(tmp_path / "they.lock") as process:
        assert ours.any_other()
        assert not ours.has_died("they")
        process.kill()
        process.wait()
        assert ours.has_died("they")
    assert not ours.has_died("a server of another folder")
    assert not ours.any_other()
    ours.release()
    assert not command.any_other()
    assert not command.has_died("we")


def test_files_of_servers_that_ended_are_removed_and_forgotten_ones_after_a_while(tmp_path: Path) -> None:
    files = LockedFiles(tmp_path)
    files.claim("we")
    for name in ("ended", "fresh", "stale"):
        (tmp_path / f"{name}.lock").touch()
    os.utime(tmp_path / "stale.lock", (time.time() - 7200,) * 2)
    files.remove(["ended", "never here"])
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["fresh", "we"]


def test_old_files_are_found_while_another_process_removes_them(tmp_path: Path) -> None:
    remover = "import sys, pathlib\nfor n in range(100, 20_000): pathlib.Path(sys.argv[1], f'{n}.part').unlink()"
    for number in range(20_000):
        (tmp_path / f"{number}.part").touch()
        os.utime(tmp_path / f"{number}.part", (0, 0))
    with subprocess.Popen([sys.executable, "-c", remover, str(tmp_path)]) as process:
        while process.poll() is None:
            assert len(find_old_files(tmp_path, "*.part", 60)) >= 100
    assert process.returncode == 0
    (tmp_path / "new.part").touch()
    assert len(find_old_files(tmp_path, "*.part", 60)) == 100
