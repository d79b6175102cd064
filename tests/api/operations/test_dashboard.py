"""The dashboard and the alert rules in deploy/ ask for metrics that a server has, under their labels."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from schnell.spec import DeviceMemory, DeviceSnapshot
from servers import Server

DEPLOY = Path(__file__).parents[3] / "deploy"
METRIC = re.compile(r"\b(?:schnell|process)_[a-z_]+")
GROUPED = re.compile(r"\bby \(([a-z_, ]+)\)")
#: What Prometheus itself adds to a series.
ADDED = {"instance", "le"}


def dashboard() -> list[str]:
    panels: list[dict[str, Any]] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def alerts() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


async def test_every_expression_asks_for_metrics_that_there_are(server: Server) -> None:
    found = await labels_by_name(server)
    for expression in [*dashboard(), *alerts()]:
        names = METRIC.findall(expression)
        assert names or expression.startswith("up{")
        for name in names:
            assert name in found, expression
        for group in GROUPED.findall(expression):
            for label in {each.strip() for each in group.split(",")} - ADDED:
                assert any(label in found[name] for name in names), expression


async def labels_by_name(server: Server) -> dict[str, set[str]]:
    """The series of a server that has drawn, failed in the background, and has a device."""
    server.runner.devices = (DeviceSnapshot("cuda:0", memory=DeviceMemory(1, 2)),)
    server.services.metrics.count_background_failure("webhooks")
    await server.draw()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await server.client.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_panels_lie_beside_each_other() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
