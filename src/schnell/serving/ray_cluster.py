"""The cluster itself: join or start it, put engine replicas on it, know when its head is gone.

Gateways are drivers of Ray that use Serve's replicas and controller, and neither its HTTP proxy nor its limits.
"""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ray
import structlog
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from schnell.errors import ServerBusyError, StartError
from schnell.serving.cluster_view import VIEW, ClusterView
from schnell.serving.replica_messages import ReplicaReport

log = structlog.get_logger(__name__)
APP: Final = "schnell"
DEPLOYMENT: Final = "engine"
_ROUTER: Final = "schnell.serving.ray_router:AffinityRouter"
_POLICY: Final = "schnell.serving.ray_cluster:queue_seconds_policy"
#: A replica's own limit, which admission at the gateways keeps it from.
_MOST_JOBS: Final = 4096
_WATCH_SECONDS: Final = 1.0
_CONNECT_SECONDS: Final = 2.0
_SEEK_SECONDS: Final = 0.1
#: How often a gateway without replicas asks why there are none.
_ASK_SECONDS: Final = 2.0
#: What Ray says to a driver on a machine that has no node of the cluster: it speaks to the cluster through one.
_NO_NODE: Final = "No node info found"
_NOT_DEPLOYED: Final = "no engine is deployed on the cluster: run `schnell cluster up`"
_NOT_STARTED: Final = "the cluster's replicas do not start: the logs of `schnell cluster up` and of Ray say why"
_FAILED: Final = frozenset({ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY})
#: How long the head may be silent before a gateway ends: Ray itself ends its process after 60 s, without a word.
GONE_SECONDS: Final = 30.0
#: How long a job waits for the cluster to be there.
_PATIENCE_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """How many replicas there are, and what each takes.

    Between `least` and `most`, as many as draw what waits in `queue_seconds`. `cpus` is also the number of an engine's
    threads. A replica that is to go draws what it has first, for `drain_seconds` at most. One that takes no step for
    `stuck_seconds` although jobs wait is taken for hung, and replaced.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    queue_seconds: float = 10.0
    up_seconds: float = 5.0
    down_seconds: float = 300.0
    drain_seconds: float = 600.0
    health_seconds: float = 10.0
    health_timeout: float = 30.0
    stuck_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One replica, for people: where it is, the work before a new job, jobs that wait, LoRAs in slots, its plan.

    `resident` are the hashes of those LoRAs, `memory_used` and `memory` bytes of its devices (None: unknown).
    """

    replica: str
    host: str
    queue_seconds: float
    queued: int
    loras: int
    resident: list[str]
    memory_used: int | None
    memory: int | None
    plan: list[str]


def join(address: str) -> None:
    """Become a driver of the cluster at `address`; of one that is started for this process where it is empty.

    Raises:
        StartError: there is no cluster, or it does not take this process.
    """
    options: dict[str, Any] = {"namespace": APP, "log_to_driver": False, "logging_level": "warning"}
    try:
        if address:
            ray.init(address=address, **options)
        else:
            ray.init(address="local", include_dashboard=False, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as cause:
        where = f"the cluster at {address}" if address else "a cluster on this machine"
        first = str(cause).strip().splitlines()[0][:300] if str(cause).strip() else type(cause).__name__
        if _NO_NODE in f"{cause} {cause.__cause__}":
            first = f"no node of it runs on this machine. Start one: ray start --address {address} --num-cpus 0"
        raise StartError(f"SCHNELL_RAY_ADDRESS: {where} cannot be used: {first}") from cause


def count_gpus() -> float:
    """How many GPUs the cluster has now, by Ray's count."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def leave() -> None:
    """End this process's part in the cluster; one that was started for it ends, too."""
    ray.shutdown()


def deploy(build: Callable[[], Any], plan: ReplicaPlan) -> None:
    """Put the engine's replicas on the cluster, or change them to `plan`, and wait until they draw.

    `build` makes the parts of a replica (`ray_replica.ReplicaParts`) in its process.

    Raises:
        StartError: a replica cannot start; its log on its node says why.
    """
    from schnell.serving.ray_replica import EngineReplica  # with torch, which gateways do without

    scaling = AutoscalingConfig(
        min_replicas=plan.least,
        initial_replicas=max(plan.least, min(1, plan.most)),
        max_replicas=max(plan.most, 1),
        upscale_delay_s=plan.up_seconds,
        downscale_delay_s=plan.down_seconds,
        metrics_interval_s=1.0,
        look_back_period_s=3.0,
        policy=AutoscalingPolicy(policy_function=_POLICY),
    )
    deployment: Any = serve.deployment(
        EngineReplica,
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        autoscaling_config=scaling,
        max_ongoing_requests=_MOST_JOBS,
        health_check_period_s=plan.health_seconds,
        health_check_timeout_s=plan.health_timeout,
        graceful_shutdown_timeout_s=plan.drain_seconds,
        graceful_shutdown_wait_loop_s=1.0,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER, request_routing_stats_period_s=1.0, request_routing_stats_timeout_s=5.0
        ),
    )
    serve.start(proxy_location="Disabled")
    try:
        serve.run(deployment.bind(build, plan.queue_seconds, plan.stuck_seconds), name=APP, route_prefix=None)
    except (RuntimeError, RayServeException) as cause:
        raise StartError(f"the cluster's replicas do not start: {str(cause).strip()[-500:]}") from cause


def undeploy() -> None:
    """Take the replicas off the cluster; each draws what it has first."""
    with suppress(RayServeException):
        serve.delete(APP)


def head_of() -> str:
    """Where the head of this process's cluster listens, as HOST:PORT."""
    return str(ray.get_runtime_context().gcs_address)


def answers(head: str) -> bool:
    """Whether a head is there. Only a connection: Ray's own calls wait for one that is gone."""
    host, _, port = head.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS):
        return True
    return False


def is_deployed(head: str) -> bool:
    """Whether the head answers, and the engine's application is on the cluster."""
    if not answers(head):
        return False
    with suppress(RayServeException, ray.exceptions.RayError, ValueError):
        return APP in serve.status().applications
    return False


def look_at_replicas(address: str, seconds: float = 10.0) -> list[ReplicaRow]:
    """The replicas of a cluster that take jobs now, by name.

    Raises:
        StartError: there is no cluster, or no engine on it.
    """
    join(address)
    try:
        handle = serve.get_app_handle(APP).options(stream=True)
        deadline = time.monotonic() + seconds
        # each replica tells of itself every second, through the controller
        while not handle.running_replicas_populated() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(_WATCH_SECONDS)
        return [_row_of(name, report) for name, report in sorted(VIEW.reports().items())]
    except (RayServeException, ray.exceptions.RayError) as cause:
        raise StartError(_NOT_DEPLOYED) from cause
    finally:
        leave()


def _row_of(name: str, report: ReplicaReport) -> ReplicaRow:
    memories = [device.memory for device in report.devices if device.memory is not None]
    return ReplicaRow(
        name,
        report.host,
        round(report.queue_seconds, 2),
        report.queued,
        len(report.resident),
        list(report.resident),
        sum(each.used for each in memories) if memories else None,
        sum(each.total for each in memories) if memories else None,
        list(report.plan),
    )


def queue_seconds_policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """How many replicas there should be: enough to draw what waits in the time that the deployment names.

    Never fewer than draw something now: Ray drains those that it takes away, but one that is busy is not to go.
    """
    found = context.aggregated_metrics or {}
    seconds = sum(found.get("queue_seconds", {}).values())
    target = max(found.get("target_seconds", {}).values(), default=10.0)
    busy = sum(jobs > 0 for jobs in found.get("jobs", {}).values())
    return max(math.ceil(seconds / target), busy), {}


class ClusterConnection:
    """A gateway's connection to the replicas: it waits for them at the start, and watches the head.

    `on_gone` is called once, from a thread, when the head was silent for `GONE_SECONDS`: this process cannot come back
    to it (Ray gives every head new state), so it should close its records and end, and its supervisor start it anew.
    """

    def __init__(self, start_seconds: float, on_gone: Callable[[], None], gone_seconds: float = GONE_SECONDS) -> None:
        self.view: ClusterView = VIEW
        self.start_seconds = start_seconds
        self._on_gone = on_gone
        self._gone_seconds = gone_seconds
        self._head = head_of()
        self._handle: Any = None
        self._problem: str | None = "the engine's replicas are not known yet"
        self._failure: str | None = None
        self.gone: Future[None] = Future()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="schnell-cluster", daemon=True)
        self._thread.start()
        # a thread of its own: without a head, Ray's calls do not return
        threading.Thread(target=self._ask, name="schnell-cluster-ask", daemon=True).start()

    @property
    def problem(self) -> str | None:
        """Why nothing can be drawn now; None if it can."""
        return self._problem

    async def handle(self) -> Any:
        """Ray Serve's handle of the replicas. Raises ServerBusyError where they are not deployed."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._handle is None:
            if time.monotonic() > deadline:
                raise ServerBusyError(f"{self._problem}; nothing was charged. Try again later", 30.0)
            await asyncio.sleep(0.05)
        return self._handle

    async def close(self) -> None:
        """Stop watching, and leave the cluster."""
        await asyncio.to_thread(self.stop_watching)
        await asyncio.to_thread(leave)

    def stop_watching(self) -> None:
        """End the thread that watches the head."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        heard = time.monotonic()
        while not self._stopping.wait(0.05 if self._handle is None else _WATCH_SECONDS):
            if answers(self._head):
                heard = time.monotonic()
                self._problem = self._failure if self._handle is not None else _NOT_DEPLOYED
                continue
            self._problem = "the cluster's head does not answer"
            if time.monotonic() - heard > self._gone_seconds:
                log.error("the cluster's head is gone; this server ends, to be started anew", head=self._head)
                # jobs first: those that wait for a replica would keep the server from ending in time
                self.gone.set_result(None)
                self._on_gone()
                return

    def _ask(self) -> None:
        """Find the replicas; where there are none later, why."""
        while not self._stopping.wait(_SEEK_SECONDS if self._handle is None else _ASK_SECONDS):
            try:
                if self._handle is None:
                    # options() also starts the router, which learns of the replicas
                    self._handle = serve.get_app_handle(APP).options(stream=True)
                else:
                    self._failure = None if self.view.reports() else _why_none()
            except (RayServeException, ray.exceptions.RayError, ValueError):
                continue
            except Exception:
                # Ray imports as it goes, in several threads at once, which Python may fail. A gateway that stopped
                # seeking here would never be ready
                log.warning("the cluster's replicas are sought again", exc_info=True)


def _why_none() -> str | None:
    """Why no replica has told of itself; None where one is on its way, or none is needed yet."""
    found = serve.status().applications.get(APP)
    if found is None:
        return _NOT_DEPLOYED
    return _NOT_STARTED if found.status in _FAILED else None
