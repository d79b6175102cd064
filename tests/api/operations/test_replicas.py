"""What operators see of a cluster's replicas, and nobody else."""

from dataclasses import replace
from pathlib import Path

import pytest

from fakes import FakeRunner
from schnell.spec import DeviceMemory, DeviceSnapshot
from servers import Server, key_for, run_server

HASH = "9" * 64
REPLICAS = (
    DeviceSnapshot(
        "x7c2/cuda:0",
        active_rows=3,
        steps=76,
        memory=DeviceMemory(6 * 2**30, 24 * 2**30),
        host="gpu-1",
        queue_seconds=3.25,
        plan=("float8 beside bfloat16", "16 slots of rank 64"),
    ),
    DeviceSnapshot("x9d4/cuda:0", is_lost=True, host="gpu-2"),
)


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner(devices=REPLICAS)


async def test_an_operator_sees_each_replica_with_its_work_memory_plan_and_loras(
    tmp_path: Path, runner: FakeRunner
) -> None:
    async with run_server(tmp_path, runner) as server:
        [known] = [each for each in await server.services.loras.list() if each.name == "black-light"]
        runner.devices = (replace(REPLICAS[0], resident_loras=(known.sha256, HASH)), REPLICAS[1])
        server.app.state.services = replace(server.services, config=replace(server.services.config, on_cluster=True))
        found = (await server.client.get("/api/admin/replicas")).json()
        assert found["problem"] is None
        first, second = found["replicas"]
        assert (first["name"], first["host"]) == ("x7c2/cuda:0", "gpu-1")
        assert (first["queueSeconds"], first["activeRows"]) == (3.25, 3)
        assert (first["memoryUsed"], first["memory"]) == (6 * 2**30, 24 * 2**30)
        assert first["plan"] == ["float8 beside bfloat16", "16 slots of rank 64"]
        assert first["loras"] == [{"sha256": known.sha256, "name": "black-light"}, {"sha256": HASH, "name": None}]
        assert (second["isLost"], second["memory"], second["loras"]) == (True, None, [])
        page = (await server.client.get("/admin/replicas")).text
        assert all(each in page for each in ("gpu-1", "3.2 s", "black-light", "16 slots of rank 64", "failed"))
        assert "/admin/replicas" in (await server.client.get("/admin")).text


async def test_a_server_that_draws_by_itself_says_so(server: Server) -> None:
    assert (await server.client.get("/api/admin/replicas")).json() == {"problem": None, "replicas": []}
    assert "This server draws by itself" in (await server.client.get("/admin/replicas")).text
    assert "/admin/replicas" not in (await server.client.get("/admin")).text


async def test_replicas_are_for_operators(server: Server) -> None:
    header = await key_for(server, "acme", "admin", "read")
    for path in ("/api/admin/replicas", "/admin/replicas"):
        assert (await server.client.get(path, headers=header)).status_code == 403
