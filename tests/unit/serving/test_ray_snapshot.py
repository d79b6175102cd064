"""What a gateway tells of the cluster's replicas is the sum of what they have told."""

from typing import Any, cast

from schnell.serving.cluster_view import ClusterView
from schnell.serving.ray_runner import RayRunner
from schnell.serving.replica_messages import ReplicaReport
from schnell.spec import NO_STEPS, DeviceMemory, DeviceSnapshot


class NoCluster:
    problem = None
    start_seconds = 60.0

    def __init__(self) -> None:
        self.view = ClusterView()


def counts(*found: int) -> tuple[int, ...]:
    return (*found, *NO_STEPS[len(found) :])


def test_a_snapshot_has_the_steps_times_and_memory_of_every_replica() -> None:
    cluster = NoCluster()
    runner = RayRunner(cast("Any", cluster), cast("Any", None))
    assert runner.snapshot().step_counts == NO_STEPS
    cluster.view.keep_only(["one", "two"])
    memory = DeviceMemory(3, 10)
    devices = [
        DeviceSnapshot("cuda:0", steps=3, step_seconds=1.5, step_counts=counts(1, 2), memory=memory),
        DeviceSnapshot("cuda:0", steps=4, step_seconds=0.5, step_counts=counts(4)),
    ]
    for name, device in zip(("one", "two"), devices, strict=True):
        cluster.view.report(name, ReplicaReport(devices=(device,), host=f"host of {name}", queue_seconds=2.0))
    found = runner.snapshot()
    assert (found.steps, found.step_seconds, found.step_counts) == (7, 2.0, counts(5, 2))
    assert [each.memory for each in found.devices] == [memory, None]
    assert [each.host for each in found.devices] == ["host of one", "host of two"]
