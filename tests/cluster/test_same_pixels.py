"""The real engine: one request and one seed give the same bytes on one machine and on a cluster."""

from pathlib import Path

import pytest

from clusters import TestCluster, await_that
from schnell.bootstrap.cluster import deploy_replicas
from schnell.bootstrap.data import build_store
from schnell.bootstrap.model import build_local_runner
from schnell.loras.replicas import ReplicaShelf
from schnell.serving.ray_cluster import ClusterConnection
from schnell.serving.ray_runner import RayRunner
from schnell.settings import Settings
from schnell.spec import GenerationSpec, Job, Size


@pytest.fixture
def settings(tmp_path: Path, cluster: TestCluster) -> Settings:
    return Settings(
        data_dir=tmp_path,
        credentials=False,
        safety=(),
        device="cpu",
        lora_slots=2,
        ray_address=cluster.address,
        assets_url=f"file:{tmp_path / 'assets'}",
    )


async def test_a_picture_is_the_same_on_one_machine_and_on_a_cluster(settings: Settings) -> None:
    from schnell.bootstrap import build_database, build_loras
    from schnell.database.migration import migrate
    from schnell.spec import LoraRef

    database = build_database(settings)
    await migrate(database)
    loras = build_loras(settings, database)
    name = (await loras.list())[0].name
    adapters = await loras.resolve([LoraRef(name, scale=1.0)], "team")
    spec = GenerationSpec("a red apple", Size(512, 512), steps=2, output_format="png")
    jobs = [Job("plain", "team", spec, 11), Job("lora", "team", spec, 12, adapters)]
    alone = build_local_runner(settings, lambda _: None)
    expected = [(await alone.run(job, lambda _: None)).images[0] for job in jobs]
    await alone.close()
    deploy_replicas(settings)
    connection = ClusterConnection(60, lambda: None)
    try:
        runner = RayRunner(connection, ReplicaShelf(build_store(settings)))
        found = [(await runner.run(job, lambda _: None)).images[0] for job in jobs]
        await_that(lambda: all(report.plan for report in connection.view.reports().values()))
        assert {device.name.partition("/")[2] for device in runner.snapshot().devices} == {"cpu"}
    finally:
        connection.stop_watching()
        await database.close()
    assert [each.data for each in found] == [each.data for each in expected]
