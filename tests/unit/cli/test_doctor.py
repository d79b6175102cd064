import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from schnell.accounts.credits import reserve
from schnell.accounts.identity import Caller
from schnell.accounts.teams import change_team, create_team, find_member
from schnell.bootstrap import read_settings
from schnell.cli.application import build_app
from schnell.cli.doctor import _cluster, _compiling, _torch
from schnell.database.migration import migrate
from schnell.database.session import Database
from schnell.database.tables import teams
from schnell.engine import devices
from schnell.engine.devices import Hardware, NvidiaDriver
from schnell.serving.ray_cluster import ReplicaRow


async def spend(folder: Path, *, tamper: bool) -> None:
    """A team that has spent 30 credits in a day that is no more its window."""
    database = Database(f"sqlite:{folder / 'schnell.db'}")
    await migrate(database)
    async with database.write() as connection:
        team = await create_team(connection, "Design", budget_window="day")
        member = await find_member(connection, team.id)
        caller = Caller(team.id, member.user_id, "Ann", "key", "ADMIN", ("generate",))
        await reserve(connection, caller, "record", 30)
        await change_team(connection, team.id, budget_window="none")
        if tamper:
            await connection.execute(update(teams).values(used_credit=7))
    await database.close()


def credits_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SCHNELL_SAFETY", "")
    result = CliRunner().invoke(build_app(), ["doctor", "--data-dir", str(folder), "--json"])
    return next(each for each in json.loads(result.stdout) if each["subject"] == "credits")


def test_a_changed_window_is_no_fault_and_a_tampered_counter_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changed").mkdir()
    asyncio.run(spend(tmp_path / "changed", tamper=False))
    assert credits_found(tmp_path / "changed", monkeypatch)["state"] == "ok"
    (tmp_path / "tampered").mkdir()
    asyncio.run(spend(tmp_path / "tampered", tamper=True))
    found = credits_found(tmp_path / "tampered", monkeypatch)
    assert found["state"] == "problem"
    assert ": 7, not 30" in found["found"]
    assert "--budget-window" in found["advice"]


def test_a_gpu_that_torch_cannot_use_is_a_warning_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Hardware(
        {"cuda": 0, "xpu": 0, "mps": 0, "cpu": 1},
        torch_cuda="13.0",
        nvidia=NvidiaDriver("535.183.01", ("NVIDIA GeForce RTX 4090",)),
    )
    monkeypatch.setattr(devices, "look_at_hardware", lambda: found)
    finding = _torch()
    assert finding.state == "warning"
    assert "on cpu" in finding.found
    assert "580 or newer" in finding.advice


def test_whether_blocks_are_compiled_is_told_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = read_settings(data_dir=tmp_path)
    found = _compiling(settings)
    assert (found.state, "uncompiled" in found.found) == ("ok", True)
    forced = settings.model_copy(update={"compile": "on"})
    monkeypatch.setattr("schnell.engine.compiler.find_missing", lambda _: "there is no C compiler")
    assert (_compiling(forced).state, _compiling(forced).advice) == ("problem", "there is no C compiler")
    monkeypatch.setattr("schnell.engine.compiler.find_missing", lambda _: None)
    assert "programs kept in" in _compiling(forced).found
    assert "SCHNELL_COMPILE is off" in _compiling(settings.model_copy(update={"compile": "off"})).found


def test_a_clusters_replicas_are_told_with_their_work_memory_and_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = ReplicaRow("x7c2", "gpu-1", 3.2, 5, 2, ["a", "b"], 6 * 2**30, 24 * 2**30, ["16 slots of rank 64"])
    monkeypatch.setattr("schnell.serving.ray_cluster.look_at_replicas", lambda _: [row])
    [finding] = _cluster(read_settings(data_dir=tmp_path, runner="ray", ray_address="head:6379"))
    assert (finding.subject, finding.state) == ("replica x7c2", "ok")
    for each in ("gpu-1", "3.2 s", "5 jobs", "2 LoRAs", "6.0 of 24.0 GiB", "16 slots of rank 64"):
        assert each in finding.found
