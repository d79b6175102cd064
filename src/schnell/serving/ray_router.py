"""The one place that knows Ray Serve's router interface, which is alpha: it asks `ClusterView` where a job should go.

Ray calls it in each gateway's process, in a thread of its own. `pyproject.toml` pins Ray to releases that this fits.
Ray sends this module's code to the gateways by value: what must be one object in a process is reached through another
module.
"""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from schnell.serving import cluster_view
from schnell.spec import Job


class AffinityRouter(RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Sends each job to the first replica of `ClusterView.rank` that takes it."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray tells which replicas take jobs (none that is draining), each with the last report that it gave."""
        names = {each.replica_id.unique_id: each for each in replicas}
        cluster_view.VIEW.keep_only(names)
        for name, replica in names.items():
            if (report := replica.routing_stats.get("report")) is not None:
                cluster_view.VIEW.report(name, report)
        super().update_replicas(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A job found it dead before the controller did."""
        super().on_replica_actor_died(replica_id)
        cluster_view.VIEW.keep_only([each.replica_id.unique_id for each in self._replicas_list])

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica a rank: Ray takes the first whose own limit of jobs is not reached."""
        job = _job_of(pending_request)
        if job is None or pending_request is None:
            return [candidate_replicas]
        # without it, Ray would ask again at once, and again, as long as no replica takes the job
        pending_request.routing_context.should_backoff = True
        found = {each.replica_id.unique_id: each for each in candidate_replicas}
        seconds = _seconds_of(job)
        ordered = cluster_view.VIEW.rank(tuple(found), job, seconds)
        if ordered:
            # at once: of a burst, each job has to know where those before it go
            cluster_view.VIEW.sent(ordered[0], job, seconds)
        return [[found[name]] for name in ordered]

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: ReplicaResult,  # noqa: ARG002 - Ray's form
    ) -> None:
        """Count the job as work of the replica that has taken it, which may be another one than it was meant for."""
        if (job := _job_of(pending_request)) is not None:
            cluster_view.VIEW.sent(replica_id.unique_id, job, _seconds_of(job))


def _seconds_of(job: Job) -> float:
    # as long as nothing was drawn, each picture counts the same
    return cluster_view.VIEW.seconds_of(job.spec) or float(job.spec.num_outputs)


def _job_of(pending: PendingRequest | None) -> Job | None:
    first: Any = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, Job) else None
