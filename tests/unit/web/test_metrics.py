from pathlib import Path

import pytest

from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.database.session import Database
from schnell.errors import ServerBusyError
from schnell.generations.closing import Closings
from schnell.spec import NO_STEPS, DeviceMemory, DeviceSnapshot, RunnerSnapshot, count_step
from schnell.web.metrics import Metrics


@pytest.fixture
def closings(tmp_path: Path) -> Closings:
    database = Database(f"sqlite:{tmp_path / 'schnell.db'}")
    return Closings(database, LocalAssets(tmp_path / "assets", LinkSigner("secret"), "http://pictures.example"))


def test_requests_and_refusals_are_counted_by_their_labels(closings: Closings) -> None:
    metrics = Metrics(RunnerSnapshot, closings)
    for _ in range(2):
        metrics.count_request("GET", "/api/results/{record_id}", 200)
    metrics.count_refusal("openai", ServerBusyError("full"))
    lines = metrics.render().decode().splitlines()
    assert 'schnell_requests_total{method="GET",route="/api/results/{record_id}",status="200"} 2.0' in lines
    assert 'schnell_generations_total{dialect="openai",outcome="QUEUE_FULL"} 1.0' in lines


def test_the_runner_is_asked_at_every_scrape(closings: Closings) -> None:
    found = [RunnerSnapshot(queued=3), RunnerSnapshot(queued=1, active_rows=2, steps=5, step_rows=10, step_seconds=0.5)]
    metrics = Metrics(lambda: found.pop(0), closings)
    assert "schnell_queue_depth 3.0" in metrics.render().decode()
    lines = metrics.render().decode().splitlines()
    for line in (
        "schnell_queue_depth 1.0",
        "schnell_active_rows 2.0",
        "schnell_step_seconds_count 5.0",
        "schnell_step_seconds_sum 0.5",
        "schnell_batch_rows_count 5.0",
        "schnell_batch_rows_sum 10.0",
    ):
        assert line in lines, line


def test_steps_are_grouped_by_how_long_they_took(closings: Closings) -> None:
    counts = NO_STEPS
    for seconds in (0.004, 0.3, 0.5, 100.0):
        counts = count_step(counts, seconds)
    device = DeviceSnapshot("cuda:0", steps=4, step_seconds=100.804, step_counts=counts, memory=DeviceMemory(3, 8))
    text = Metrics(lambda: RunnerSnapshot(devices=(device,)), closings).render().decode()
    for line in (
        'schnell_device_step_seconds_bucket{device="cuda:0",le="0.005"} 1.0',
        'schnell_device_step_seconds_bucket{device="cuda:0",le="0.25"} 1.0',
        'schnell_device_step_seconds_bucket{device="cuda:0",le="0.5"} 3.0',
        'schnell_device_step_seconds_bucket{device="cuda:0",le="60.0"} 3.0',
        'schnell_device_step_seconds_bucket{device="cuda:0",le="+Inf"} 4.0',
        'schnell_device_memory_used_bytes{device="cuda:0"} 3.0',
    ):
        assert line in text.splitlines(), line


def test_each_device_has_series_of_its_own(closings: Closings) -> None:
    devices = (
        DeviceSnapshot("cuda:0", active_rows=2, leased_loras=3, steps=5, step_rows=10, step_seconds=0.5),
        DeviceSnapshot("cuda:1", is_lost=True),
        DeviceSnapshot("cpu"),
        DeviceSnapshot("cpu"),
    )
    lines = Metrics(lambda: RunnerSnapshot(devices=devices), closings).render().decode().splitlines()
    for line in (
        'schnell_device_up{device="cuda:0"} 1.0',
        'schnell_device_up{device="cuda:1"} 0.0',
        'schnell_device_up{device="cpu#2"} 1.0',
        'schnell_device_active_rows{device="cuda:0"} 2.0',
        'schnell_device_leased_loras{device="cuda:0"} 3.0',
        'schnell_device_step_seconds_sum{device="cuda:0"} 0.5',
        'schnell_device_batch_rows_sum{device="cuda:0"} 10.0',
    ):
        assert line in lines, line
