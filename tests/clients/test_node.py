"""npm's `openai` and `replicate`."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from client_service import MODEL, Service
from node_packages import packages

__all__ = ["packages"]


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
