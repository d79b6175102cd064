from pathlib import Path

import pytest
import torch

from schnell.engine import processors
from schnell.engine.processors import fit_threads_to_quota, read_quota


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        # a group below one that is narrower
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        # a container whose own group is mounted as the root
        ("0::/docker/123\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("9:memory:/x\n", {"cpu.max": "100000 100000\n"}, None),
        ("what is this\n", {"cpu.max": "also this"}, None),
    ],
)
def test_the_quota_is_that_of_the_narrowest_group(
    own: str, files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    assert read_quota(tmp_path / "own", write(tmp_path / "root", files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert read_quota(tmp_path / "nothing", tmp_path) is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 2), (64.0, 2), (1.5, 1), (0.5, 1)])
def test_there_are_as_many_threads_as_the_quota_and_never_more_than_before(
    quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processors, "read_quota", lambda: quota)
    try:
        assert fit_threads_to_quota() == threads
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert fit_threads_to_quota() == 2
    finally:
        torch.set_num_threads(before)
