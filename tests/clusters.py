"""A Ray cluster for tests, on the loopback alone: a head in its own processes, further nodes, and replicas on them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cluster_engines import build_steady, open_store
from s3_servers import ACCESS_KEY, SECRET_KEY, free_port
from schnell.loras.replicas import ReplicaShelf
from schnell.serving.ray_cluster import ClusterConnection, ReplicaPlan, deploy
from schnell.serving.ray_runner import RayRunner
from schnell.spec import AdapterUse, GenerationSpec, Job, Progress

TESTS: Final = Path(__file__).parent
_STORE_BYTES: Final = 80 * 2**20


def ray_environment() -> dict[str, str]:
    """What every process of a test cluster has in its environment."""
    paths = (TESTS.parent / "src", TESTS, *map(Path, os.environ.get("PYTHONPATH", "").split(":")))
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_enable_open_telemetry": "0",
        "PYTHONPATH": ":".join(dict.fromkeys(map(str, paths))),
        "OMP_NUM_THREADS": "1",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }


@dataclass
class Node:
    """A node's processes, of which `process` is the one that ends the others."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> None:
        """As a machine that loses its power: every process of the node at once."""
        for pid in [*_descendants(self.process.pid), self.process.pid]:
            kill(pid)
        self.process.wait(20)

    def pid_of(self, name: str) -> int:
        """The process of the node whose command has this name."""
        found = (pid for pid in _descendants(self.process.pid) if name in Path(f"/proc/{pid}/cmdline").read_text())
        return next(found)


@dataclass
class TestCluster:
    """A head, and what tests do with it."""

    __test__ = False
    folder: Path
    port: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_head(self, cpus: int = 6) -> Node:
        return self._start("--head", f"--port={self.port}", "--include-dashboard=false", f"--num-cpus={cpus}")

    def add_node(self, cpus: int = 2) -> Node:
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}")

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.kill()

    def _start(self, *options: str) -> Node:
        log = self.folder / f"node-{len(self.nodes)}.txt"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, f"--object-store-memory={_STORE_BYTES}", "--disable-usage-stats"],
                env=os.environ | ray_environment(),
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        node = Node(process, log)
        self.nodes.append(node)
        await_that(lambda: "Ray runtime started" in log.read_text() or _ended(node), 120, log.read_text)
        return node


def _ended(node: Node) -> bool:
    if node.process.poll() is not None:
        raise RuntimeError(node.log.read_text())
    return False


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents.setdefault(int(stat.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(stat.parent.name))
    children = parents.get(pid, [])
    return [*children, *(deeper for child in children for deeper in _descendants(child))]


def await_that(condition: Callable[[], object], seconds: float = 60, tell: Callable[[], object] = lambda: "") -> None:
    """Wait until something holds; the time is only there for the case that it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.05)


@dataclass
class Replicas:
    """Steady replicas on a cluster, their diary, and a gateway's runner to them."""

    folder: Path
    connection: ClusterConnection
    runner: RayRunner
    heard: list[Progress] = field(default_factory=list)

    def diary(self) -> list[list[str]]:
        path = self.folder / "diary.txt"
        return [line.split(maxsplit=2) for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self) -> set[int]:
        """The processes of replicas that have started and still run."""
        return {int(line[0]) for line in self.diary() if line[1] == "start" and is_running(int(line[0]))}

    def steps_of(self, prompt: str) -> int:
        return sum(line[1:] == ["step", prompt] for line in self.diary())

    def has_begun(self, prompt: str) -> bool:
        return self.steps_of(prompt) >= 1

    def lora(self, name: str) -> AdapterUse:
        path = self.folder / f"{name}.safetensors"
        path.write_bytes(name.encode() * 50)
        return AdapterUse(name, f"{name:0<64}", path, 1.0)

    async def draw(self, name: str, seed: int = 0, loras: tuple[AdapterUse, ...] = (), steps: int = 4) -> bytes:
        job = Job(name, "team", GenerationSpec(name, steps=steps), seed, loras)
        outcome = await self.runner.run(job, self.heard.append)
        return outcome.images[0].data


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def replicas(folder: Path, plan: ReplicaPlan, **engine: Any) -> Iterator[Replicas]:
    """Steady replicas by this plan, on the cluster that this process has joined."""
    folder.mkdir(parents=True, exist_ok=True)
    deploy(partial(build_steady, folder, **engine), plan)
    connection = ClusterConnection(60, lambda: None)
    shelf = ReplicaShelf(open_store(folder, engine.get("bucket_at", "")))
    await_that(lambda: len(connection.view.reports()) >= plan.least)
    try:
        yield Replicas(folder, connection, RayRunner(connection, shelf))
    finally:
        connection.stop_watching()


def new_cluster(folder: Path) -> TestCluster:
    folder.mkdir(parents=True, exist_ok=True)
    return TestCluster(folder, free_port())
