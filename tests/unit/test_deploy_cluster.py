"""The files in deploy/ for clusters. Nothing here runs them, but what they name is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_command
from typer.main import get_command

from schnell.cli.application import build_app
from schnell.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "cluster.compose.yaml").read_text())
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))
CONTAINERS = [
    container
    for manifest in MANIFESTS
    if manifest["kind"] == "Deployment"
    for container in manifest["spec"]["template"]["spec"]["containers"]
]
NAMES = {f"SCHNELL_{name.upper()}" for name in Settings.model_fields}


def _commands_in_files() -> set[str]:
    ours = [str(each["command"]) for each in COMPOSE["services"].values() if "command" in each and "build" in each]
    return {*ours, *(container["command"][-1] for container in CONTAINERS)}


@pytest.mark.parametrize("name", ["cluster.compose.yaml", "kuberay.yaml"])
def test_every_setting_in_it_exists(name: str) -> None:
    found = set(re.findall(r"SCHNELL_[A-Z0-9_]+", (DEPLOY / name).read_text()))
    assert len(found) >= 6
    assert found <= NAMES


def test_its_values_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    environments = [COMPOSE["services"]["gateway"]["environment"], of_kind("ConfigMap")["data"]]
    for environment in environments:
        given = {
            name.removeprefix("SCHNELL_").lower(): re.sub(r"\$\{[A-Z_]+:\?\}", "x" * 32, str(value))
            for name, value in environment.items()
            if name.startswith("SCHNELL_")
        }
        settings = Settings.model_validate(given | {"data_dir": tmp_path})
        assert settings.ray_address.endswith(":6379")
        assert settings.model == "flux-schnell"


@pytest.mark.parametrize("command", sorted(_commands_in_files()))
def test_every_command_and_option_in_it_exists(command: str) -> None:
    parts = list(_commands(command))
    assert parts
    for words in parts:
        check_words(words)


def _commands(line: str) -> Iterator[list[str]]:
    words = shlex.split(line)
    if words[:2] == ["sh", "-c"]:
        words = shlex.split(words[2])
    for text in " ".join(words).split(" && "):
        yield shlex.split(text.removeprefix("exec "))


def check_words(words: list[str]) -> None:
    """Parse a command line as the program would, without running it. Raises click.UsageError."""
    command: click.Command = {"ray": ray_command, "schnell": get_command(build_app())}[words[0]]
    rest = words[1:]
    while isinstance(command, click.Group):
        command = command.commands[rest.pop(0)]
    command.make_context("test", rest, resilient_parsing=False)


def test_every_part_that_talks_to_the_cluster_has_a_node_of_it() -> None:
    """Ray lets no process in that has no node on its machine: a container is one."""
    talking = [each["command"] for each in COMPOSE["services"].values() if "exec schnell" in str(each.get("command"))]
    talking += [" ".join(container["command"]) for container in CONTAINERS]
    assert len(talking) == 5
    assert all("ray start --address" in each and "--num-cpus 0" in each for each in talking)


def test_only_the_gateways_and_the_bucket_are_published() -> None:
    ports = {name: each["ports"] for name, each in COMPOSE["services"].items() if "ports" in each}
    assert ports == {"gateway": ["8000:8000"], "gateway-2": ["8001:8000"], "seaweedfs": ["8333:8333"]}
    assert Settings.model_fields["port"].default == 8000
    service = of_kind("Service")
    container = of_kind("Deployment", "schnell-gateway")["spec"]["template"]["spec"]["containers"][0]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["containerPort"] == 8000
    # Ray's pods, and every pod that is a node of Ray besides, take nothing from others but requests
    closed = {str(each["spec"]["podSelector"]["matchLabels"]) for each in MANIFESTS if each["kind"] == "NetworkPolicy"}
    assert closed == {"{'ray.io/cluster': 'schnell'}", "{'ray': 'yes'}"}


def test_volumes_services_and_secrets_that_it_names_are_there() -> None:
    services = COMPOSE["services"]
    for name, each in services.items():
        assert set(each.get("depends_on", [])) <= set(services), name
        mounted = {volume.split(":")[0] for volume in each.get("volumes", [])}
        assert {volume for volume in mounted if not volume.startswith(".")} <= set(COMPOSE["volumes"]), name
    secrets = {"SCHNELL_DATABASE_URL", "SCHNELL_LINK_SECRETS", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"}
    assert not secrets & set(of_kind("ConfigMap")["data"])
    assert all(f"${{{name}:?}}" in str(COMPOSE) for name in secrets - {"SCHNELL_DATABASE_URL"})


def test_the_cluster_has_rays_version_that_we_pin() -> None:
    pinned = re.search(r"^ray==([0-9.]+)", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert of_kind("RayCluster")["spec"]["rayVersion"] == pinned[1]


def of_kind(kind: str, name: str | None = None) -> dict[str, Any]:
    [found] = [each for each in MANIFESTS if each["kind"] == kind and name in {None, each["metadata"]["name"]}]
    return dict(found)
