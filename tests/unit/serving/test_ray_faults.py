"""What a gateway makes of a cluster that takes no job, and how a replica's parts are built, without a cluster."""

import asyncio
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
from schnell.spec import GenerationSpec, Job


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

    async def __anext__(self) -> None:
        raise DeploymentUnavailableError(cast("Any", "engine"))

    def cancel(self) -> None:
        raise DeploymentUnavailableError(cast("Any", "engine"))


class FailedDeployment:
    def __init__(self) -> None:
        self.view = ClusterView()

    async def handle(self) -> Refused:
        return Refused()


async def no_files(*_: Any, **__: Any) -> dict[str, str]:
    return {}


async def test_a_deployment_that_failed_is_busy_and_says_that_nothing_was_charged() -> None:
    runner = RayRunner(cast("Any", FailedDeployment()), no_files)
    with pytest.raises(ModelBusyError, match="takes no pictures now; nothing was charged"):
        await runner.run(Job("job", "team", GenerationSpec("x"), 1), lambda _: None)


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
