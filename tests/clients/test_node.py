"""npm's `openai` and `replicate`, installed once into a cache folder."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from client_service import MODEL, Service

SCRIPTS = Path(__file__).parent / "node"
PACKAGES = ("openai@6", "replicate@1")


@pytest.fixture(scope="session")
def packages() -> Path:
    """A folder with the packages and the scripts, because Node looks for packages beside the script."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: apt-get install nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schnell-tests" / "node"
    cache.mkdir(parents=True, exist_ok=True)
    if not all((cache / "node_modules" / name.partition("@")[0] / "package.json").exists() for name in PACKAGES):
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(cache), *PACKAGES]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if installed.returncode:
            pytest.skip(f"npm could not install {', '.join(PACKAGES)}: {installed.stderr[-300:]}")
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, cache)
    return cache


def run(service: Service, packages: Path, script: str) -> dict[str, Any]:
    environment = os.environ | {"SERVICE_URL": service.url, "SERVICE_KEY": service.key}
    done = subprocess.run(
        ["node", str(packages / script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_openai_draws_streams_lists_and_refuses(service: Service, packages: Path) -> None:
    found = run(service, packages, "openai.mjs")
    assert MODEL in found.pop("models")
    assert found == {
        "pictures": 2,
        "signature": "PNG",
        "linkType": "image/png",
        "events": ["image_generation.partial_image", "image_generation.completed"],
        "samePicture": True,
        "refusal": {"kind": "BadRequestError", "status": 400, "param": "n"},
    }


def test_replicate_runs_waits_cancels_lists_and_refuses(service: Service, packages: Path) -> None:
    found = run(service, packages, "replicate.mjs")
    assert MODEL in found.pop("models")
    assert found == {
        "signature": "PNG",
        "status": "succeeded",
        "outputs": 1,
        "cancelled": "canceled",
        "listed": True,
        "version": 64,
        "secret": True,
        "refusal": {"kind": "ApiError", "status": 422},
    }
