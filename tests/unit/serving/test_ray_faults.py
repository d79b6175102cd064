"""What a gateway makes of a cluster that takes no job, and how a replica's parts are built, without a cluster."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import ApplicationStatus

from schnell.errors import ModelBusyError
from schnell.serving import ray_cluster
from schnell.serving.cluster_view import ClusterView
from schnell.serving.ray_replica import EngineReplica, ReplicaParts
from schnell.serving.ray_runner import RayRunner
from schnell.serving.replica_messages import Message
from schnell.spec import GenerationSpec, Job, Progress


class Refused:
    """A stream of a deployment that failed: it raises whatever is asked of it, as Ray's does."""

    def options(self, **_: Any) -> "Refused":
        return self

    @property
    def draw(self) -> "Refused":
        return self

    def remote(self, *_: Any) -> "Refused":
        return self

    def __aiter__(self) -> "Refused":
        return self

    async def __anext__(self) -> Message:
        raise DeploymentUnavailableError(cast("Any", "engine"))

    def cancel(self) -> None:
        raise DeploymentUnavailableError(cast("Any", "engine"))


class Silent(Refused):
    """A stream to a replica of a cluster whose head is gone: nothing comes, and nothing can be cancelled."""

    async def __anext__(self) -> Message:
        await asyncio.Event().wait()
        return Message()

    def cancel(self) -> None:
        pytest.fail("Ray's calls may not return without a head")


class OneStep(Refused):
    """A stream that tells of a step, and notes that it was cancelled."""

    is_cancelled = False

    async def __anext__(self) -> Message:
        return Message(progress=Progress("denoise", 1, 4))

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeCluster:
    def __init__(self, stream: Refused) -> None:
        self.view = ClusterView()
        self.gone: Future[None] = Future()
        self.stream = stream

    async def handle(self) -> Refused:
        return self.stream


async def no_files(*_: Any, **__: Any) -> dict[str, str]:
    return {}


async def test_a_deployment_that_failed_is_busy_and_says_that_nothing_was_charged() -> None:
    runner = RayRunner(cast("Any", FakeCluster(Refused())), no_files)
    with pytest.raises(ModelBusyError, match="takes no pictures now; nothing was charged"):
        await runner.run(Job("job", "team", GenerationSpec("x"), 1), lambda _: None)


async def test_jobs_of_a_cluster_whose_head_is_gone_end_so_that_their_records_can_be_closed() -> None:
    cluster = FakeCluster(Silent())
    runner = RayRunner(cast("Any", cluster), no_files)
    jobs = [
        asyncio.create_task(runner.run(Job(f"job {n}", "team", GenerationSpec("x"), 1), lambda _: None))
        for n in range(3)
    ]
    await asyncio.sleep(0)
    assert not any(job.done() for job in jobs)
    await asyncio.to_thread(cluster.gone.set_result, None)
    for error in await asyncio.gather(*jobs, return_exceptions=True):
        assert isinstance(error, ModelBusyError)
        assert "head is gone" in error.message


async def test_a_replica_stops_where_the_one_who_listens_has_failed() -> None:
    stream = OneStep()
    runner = RayRunner(cast("Any", FakeCluster(stream)), no_files)

    def fail(_: Progress) -> None:
        raise LookupError("the listener")

    with pytest.raises(LookupError, match="the listener"):
        await runner.run(Job("job", "team", GenerationSpec("x"), 1), fail)
    assert stream.is_cancelled


async def test_a_replicas_parts_may_run_coroutines_while_they_are_built_on_rays_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Ray awaits it at a replica's end, Python cannot
    monkeypatch.delattr(EngineReplica, "__del__")
    parts = cast("ReplicaParts", object())

    async def read_keys() -> ReplicaParts:
        return parts

    replica = EngineReplica(lambda: asyncio.run(read_keys()), target_seconds=1.0, stuck_seconds=1.0)
    assert replica._parts is parts


@pytest.mark.parametrize(
    ("applications", "said"),
    [
        ({}, "run `schnell cluster up`"),
        ({"schnell": SimpleNamespace(status=ApplicationStatus.DEPLOY_FAILED)}, "replicas do not start"),
        # on its way, or none needed now: a job waits for it
        ({"schnell": SimpleNamespace(status=ApplicationStatus.DEPLOYING)}, "None"),
        ({"schnell": SimpleNamespace(status=ApplicationStatus.RUNNING)}, "None"),
    ],
)
def test_a_gateway_without_replicas_says_why_there_are_none(
    applications: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications))
    assert said in str(ray_cluster._why_none())
