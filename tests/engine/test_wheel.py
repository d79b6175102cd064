"""The package as people get it: a wheel, installed elsewhere, with everything that it needs inside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
WHOLE = bool(os.environ.get("SCHNELL_SOAK"))


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    [built] = folder.glob("schnell-*.whl")
    return built


def test_a_wheel_draws_from_another_place(wheel: Path, tmp_path: Path) -> None:
    """Its libraries are this environment's; `make soak` installs them anew as well."""
    place = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, wheel)
    where = run(sys.executable, "-c", "import schnell; print(schnell.__file__)", PYTHONPATH=str(place))
    assert where.startswith(str(place))
    draw(sys.executable, tmp_path / "apple.webp", PYTHONPATH=str(place))
    assert (place / "schnell" / "web" / "pages" / "templates").is_dir()
    assert (place / "schnell" / "web" / "pages" / "translations" / "de.po").is_file()


@pytest.mark.soak
@pytest.mark.skipif(not WHOLE, reason="runs in make soak")
@pytest.mark.timeout(3600)
def test_a_wheel_draws_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    draw(python, tmp_path / "apple.webp")


def draw(python: str | Path, output: Path, **environment: str) -> None:
    options = ["--seed", "7", "--megapixels", "0.25", "--steps", "1", "--output", str(output)]
    run(python, "-m", "schnell", "generate", "red apple", *options, **environment)
    assert Image.open(output).size == (512, 512)
