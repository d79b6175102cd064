"""Where a server draws, out of settings; and of a cluster its two sides: the gateway's runner, and the replicas.

Ray is imported here and in `serving/ray_*` alone, and only with `SCHNELL_RUNNER=ray` or `schnell cluster`.
"""

import os
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from schnell.generations import Runner
    from schnell.serving.ray_cluster import ReplicaPlan
    from schnell.serving.ray_replica import ReplicaParts
    from schnell.serving.ray_runner import RayRunner
    from schnell.settings import Settings
    from schnell.side_processes import SideProcesses

#: What replicas take from whoever deploys them. Everything else, secrets first, they read where they run.
_HANDED_OVER: Final = frozenset(
    {
        "model", "precision", "lora_slots", "lora_rank", "offload", "text_encoders", "batch_rows", "decode", "compile",
        "keep_quantized", "safety", "safety_threshold", "watermark", "credentials", "credentials_name",
        "credentials_prompt", "credentials_time", "credentials_time_stamps", "lora_cache_bytes",
        "assets_url", "s3_endpoint", "s3_region",
    }
)  # fmt: skip
_RAY_DEFAULTS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # by default Ray runs its processes, the replicas among them, after everything else of the machine
    "RAY_worker_niceness": "0",
    # a call that comes after this process has left would join again, or start a cluster that listens everywhere
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
_NO_RAY: Final = "a cluster needs Ray: pip install 'schnell[cluster]'"


def build_server_runner(settings: "Settings", tell: "Callable[[str], object]", beside: "SideProcesses") -> "Runner":
    """The server's runner: in this process, or with `SCHNELL_RUNNER=ray` on a cluster. Raises as the two.

    One in this process pauses the processes `beside` while it computes on a CPU.
    """
    from schnell.bootstrap.model import build_local_runner

    if settings.runner == "ray":
        return build_ray_runner(settings, tell)
    return build_local_runner(settings, tell, beside)


def build_ray_runner(settings: "Settings", tell: "Callable[[str], object]") -> "RayRunner":
    """A gateway's runner: it joins the cluster, or starts one on this machine where `SCHNELL_RAY_ADDRESS` is empty.

    Raises:
        ConfigurationError: Ray is not installed.
        StartError: there is no cluster, or its replicas do not start.
    """
    prepare_ray()
    from schnell.bootstrap.data import build_store
    from schnell.loras.replicas import ReplicaShelf
    from schnell.serving.ray_cluster import ClusterConnection, join
    from schnell.serving.ray_runner import RayRunner

    join(settings.ray_address)
    if not settings.ray_address:
        tell(f"starting {max(1, settings.replicas_min)} replicas on this machine …")
        deploy_replicas(settings)
    connection = ClusterConnection(settings.replica_start_seconds, _end_this_process)
    return RayRunner(connection, ReplicaShelf(build_store(settings)))


def deploy_replicas(settings: "Settings") -> None:
    """Put the engine's replicas on the cluster that this process has joined. Raises StartError."""
    from functools import partial

    from schnell.serving.ray_cluster import deploy

    given = {name: getattr(settings, name) for name in sorted(_HANDED_OVER & settings.model_fields_set)}
    if not settings.ray_address:
        # on this machine, which has one data folder; elsewhere each machine has its own
        given["data_dir"] = settings.data_dir
    deploy(partial(build_replica, given), replica_plan(settings))


def replica_plan(settings: "Settings") -> "ReplicaPlan":
    """How many replicas there are to be, and what each takes of its node."""
    from schnell.serving.ray_cluster import ReplicaPlan, count_gpus

    gpus = settings.replica_gpus
    if gpus is None:
        gpus = 0.0 if settings.device == "cpu" or not count_gpus() else 1.0
    return ReplicaPlan(
        least=settings.replicas_min,
        most=max(settings.replicas_min, settings.replicas_max),
        cpus=settings.replica_cpus,
        gpus=gpus,
        queue_seconds=settings.replica_queue_seconds,
        down_seconds=settings.replica_idle_seconds,
        drain_seconds=settings.replica_drain_seconds,
    )


def build_replica(given: "Mapping[str, Any]") -> "ReplicaParts":
    """The parts of a replica, in its own process: a whole machine's engine, loaded and warm.

    `given` are the deployer's settings; the others are those of this node. Raises as `build_local_runner`.
    """
    from schnell.bootstrap.data import build_store, read_settings
    from schnell.bootstrap.model import build_local_runner
    from schnell.serving.ray_replica import ReplicaParts
    from schnell.serving.replica_files import ReplicaFiles

    settings = read_settings(**given)
    lines: list[str] = []
    runner = build_local_runner(settings, lines.append)
    store = build_store(settings)
    files = ReplicaFiles(settings.data_dir / "loras" / "replicas", store.fetch_file, settings.lora_cache_bytes)
    return ReplicaParts(runner, files, tuple(lines))


def prepare_ray() -> None:
    """What Ray reads from the environment when it is imported. Raises ConfigurationError where it is not installed."""
    from importlib.util import find_spec

    from schnell.errors import ConfigurationError

    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise ConfigurationError(f"SCHNELL_RUNNER: {_NO_RAY}")
    for name, value in _RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)


def _end_this_process() -> None:
    """As an operator would: what runs is finished, or its credits released, and the supervisor starts it anew."""
    os.kill(os.getpid(), signal.SIGTERM)
