"""npm's `openai` and `replicate`, and `esbuild`, which bundles them, installed once into a cache folder."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "clients" / "node"
PACKAGES = ("openai@6", "replicate@1", "esbuild@0.25")


@pytest.fixture(scope="session")
def packages() -> Path:
    """A folder with the packages and the scripts, because Node looks for packages beside the script."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: apt-get install nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schnell-tests" / "node"
    cache.mkdir(parents=True, exist_ok=True)
    # tests run in several processes, which share the folder
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(npm, cache)
        for script in SCRIPTS.glob("*.mjs"):
            shutil.copy(script, cache)
    return cache


def _install(npm: str, cache: Path) -> None:
    if not all((cache / "node_modules" / name.partition("@")[0] / "package.json").exists() for name in PACKAGES):
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(cache), *PACKAGES]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if installed.returncode:
            pytest.skip(f"npm could not install {', '.join(PACKAGES)}: {installed.stderr[-300:]}")
