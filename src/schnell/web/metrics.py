"""Prometheus metrics: counters of requests and generations, and the runner's figures at the time of a scrape."""

import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from schnell.accounts.identity import Caller
from schnell.errors import SchnellError
from schnell.generations import Closings, Record
from schnell.spec import STEP_BOUNDS, DeviceSnapshot, RunnerSnapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server, in a registry of its own so that several servers can live in one process."""

    def __init__(
        self, snapshot: Callable[[], RunnerSnapshot], closings: Closings, collectors: Sequence[Collector] = ()
    ) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._registry.register(_RunnerCollector(snapshot))
        self._registry.register(_ClosingsCollector(closings))
        self._background = Counter(
            "schnell_background_failures", "Failed runs of background jobs", ["job"], registry=self._registry
        )
        self._requests = Counter(
            "schnell_requests", "HTTP requests", ["method", "route", "status"], registry=self._registry
        )
        self._generations = Counter(
            "schnell_generations", "Generations by dialect and outcome", ["dialect", "outcome"], registry=self._registry
        )
        self._pictures = Counter("schnell_images", "Pictures delivered", registry=self._registry)
        self._credits = Counter("schnell_credits", "Credits charged", registry=self._registry)
        self._team_credits = Counter(
            "schnell_team_credits", "Credits charged, by team", ["team"], registry=self._registry
        )
        self._flags = Counter(
            "schnell_safety_flags", "Pictures withheld by the safety checker", registry=self._registry
        )
        self._wait = Histogram(
            "schnell_queue_wait_seconds", "From request to first step", buckets=_BUCKETS, registry=self._registry
        )
        self._duration = Histogram(
            "schnell_generation_seconds", "From request to record", buckets=_BUCKETS, registry=self._registry
        )

    def count_request(self, method: str, route: str, status: int) -> None:
        """Count an HTTP request under its route's pattern, not its path: ids would make a series each."""
        self._requests.labels(method, route, str(status)).inc()

    def count_refusal(self, dialect: str, error: SchnellError) -> None:
        """Count a generation that was not accepted."""
        self._generations.labels(dialect, error.code).inc()

    def tell_build(self, version: str, model: str) -> None:
        """Say what is served, as a gauge that is always 1."""
        build = Gauge("schnell_build_info", "What is served", ["version", "python", "model"], registry=self._registry)
        build.labels(version, platform.python_version(), model).set(1)

    def count_end(self, record: Record, error: SchnellError | None, caller: Caller) -> None:
        """Count a generation that ended, with its pictures, credits and waiting times; `error` if it failed."""
        self._generations.labels(record.dialect, error.code if error else "SUCCESS").inc()
        self._pictures.inc(len(record.images))
        self._credits.inc(record.cost)
        self._team_credits.labels(caller.team_name).inc(record.cost)
        self._flags.inc(len(record.response_object.get("flagged", ())))
        if record.started_at:
            self._wait.observe((record.started_at - record.created_at).total_seconds())
        if record.finished_at:
            self._duration.observe((record.finished_at - record.created_at).total_seconds())

    def count_background_failure(self, job: str) -> None:
        """A run of a background job that ended with an exception."""
        self._background.labels(job).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _RunnerCollector(Collector):
    def __init__(self, snapshot: Callable[[], RunnerSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        yield GaugeMetricFamily("schnell_queue_depth", "Jobs that wait", value=now.queued)
        yield GaugeMetricFamily("schnell_active_rows", "Pictures being denoised", value=now.active_rows)
        steps = HistogramMetricFamily("schnell_step_seconds", "Denoising steps, by how long they took")
        steps.add_metric([], _buckets(now.step_counts, now.steps), now.step_seconds)
        yield steps
        rows = SummaryMetricFamily("schnell_batch_rows", "Pictures in a denoising step")
        rows.add_metric([], count_value=now.steps, sum_value=now.step_rows)
        yield rows
        yield from _of_devices(now.devices)


def _of_devices(devices: Sequence[DeviceSnapshot]) -> Iterator[Metric]:
    up = GaugeMetricFamily("schnell_device_up", "1 while a device draws, 0 once it has failed", labels=["device"])
    active = GaugeMetricFamily("schnell_device_active_rows", "Pictures being denoised", labels=["device"])
    leased = GaugeMetricFamily("schnell_device_leased_loras", "Different LoRAs being drawn with", labels=["device"])
    steps = HistogramMetricFamily("schnell_device_step_seconds", "Denoising steps of a device", labels=["device"])
    rows = SummaryMetricFamily("schnell_device_batch_rows", "Pictures in a step of a device", labels=["device"])
    used = GaugeMetricFamily("schnell_device_memory_used_bytes", "A device's memory in use", labels=["device"])
    total = GaugeMetricFamily("schnell_device_memory_bytes", "A device's memory", labels=["device"])
    # the same name twice, as two CPU workers have it, would be the same series twice
    names = [device.name for device in devices]
    for index, device in enumerate(devices):
        labels = [device.name if names.count(device.name) == 1 else f"{device.name}#{index}"]
        up.add_metric(labels, float(not device.is_lost))
        active.add_metric(labels, device.active_rows)
        leased.add_metric(labels, device.leased_loras)
        steps.add_metric(labels, _buckets(device.step_counts, device.steps), device.step_seconds)
        rows.add_metric(labels, count_value=device.steps, sum_value=device.step_rows)
        if device.memory is not None:
            used.add_metric(labels, device.memory.used)
            total.add_metric(labels, device.memory.total)
    yield from (up, active, leased, steps, rows, used, total)
    yield from _of_replicas([(name, device) for name, device in zip(names, devices, strict=True) if device.host])


def _buckets(counts: Sequence[int], steps: int) -> list[tuple[str, float]]:
    """Prometheus' cumulative buckets. The last one is the count itself, whatever a runner groups."""
    sums = itertools.accumulate(counts[:-1])
    return [*((str(bound), float(each)) for bound, each in zip(STEP_BOUNDS, sums, strict=True)), ("+Inf", float(steps))]


def _of_replicas(replicas: Sequence[tuple[str, DeviceSnapshot]]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("schnell_replica_queue_seconds", "Work before a new job", labels=["device", "host"])
    resident = GaugeMetricFamily("schnell_replica_resident_loras", "LoRAs in slots", labels=["device", "host"])
    for name, replica in replicas:
        waiting.add_metric([name, replica.host], replica.queue_seconds)
        resident.add_metric([name, replica.host], len(replica.resident_loras))
    if replicas:
        yield from (waiting, resident)


class _ClosingsCollector(Collector):
    def __init__(self, closings: Closings) -> None:
        self._closings = closings

    def collect(self) -> Iterator[Metric]:
        overdue = self._closings.overdue()
        yield GaugeMetricFamily(
            "schnell_closings_pending", "Ended generations whose end the database has not taken", value=overdue.count
        )
        yield GaugeMetricFamily(
            "schnell_closings_oldest_seconds", "For how long the oldest of them is tried", value=overdue.seconds
        )
        retries = CounterMetricFamily("schnell_closing_retries", "Writes of ends that failed and were tried again")
        retries.add_metric([], self._closings.retries)
        yield retries
