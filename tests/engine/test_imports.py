"""What drawing a picture imports: a cold start is mostly imports, and none of our networks is another library's."""

import subprocess
import sys
from pathlib import Path

UNWANTED = ("diffusers", "accelerate", "transformers", "peft", "sympy", "torch._dynamo", "gguf")
GENERATE = """
from schnell.bootstrap import build_engine
from schnell.engine.engine import generate
from schnell.spec import GenerationSpec, Job, Size

engine = build_engine("schnell-mini", safety=False)
spec = GenerationSpec("red apple", Size(256, 256), steps=1)
assert generate(engine, Job("a", "t", spec, 1), lambda _: None).images
"""
#: What `schnell generate` needs on no account: of other commands, for other files, for people who look on.
UNUSED = (
    *UNWANTED, "sqlalchemy", "fastapi", "starlette", "uvicorn", "jinja2", "boto3", "botocore", "ray", "mcp",
    "httpx", "limits", "structlog", "rich", "scipy", "PIL.PdfImagePlugin", "schnell.web", "schnell.generations",
)  # fmt: skip
BEFORE_TORCH = """
import sys
import schnell.bootstrap

def build_engine(*_, **__):
    sys.exit(f"torch is here: {'torch' in sys.modules}")

schnell.bootstrap.build_engine = build_engine
sys.argv = ["schnell", "generate", "red apple"]
from schnell.cli import main
main()
"""
SERVE = """
import schnell.web.app
from schnell.bootstrap import build_server_runner, read_settings
from schnell.side_processes import SideProcesses

build_server_runner(read_settings(), lambda _: None, SideProcesses())
"""


def imported_by(script: str, folder: Path) -> list[str]:
    asked = f"import os, sys; print(*sorted(name for name in sys.modules if name.startswith({UNWANTED})), sep=chr(10))"
    # a server that is never closed has threads amid their work, and an interpreter that ends beside them may abort
    asked += "; sys.stdout.flush(); os._exit(0)"
    done = run_python(folder, "-c", script + asked)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"SCHNELL_DATA_DIR": str(folder), "PYTHONPATH": ":".join(sys.path), "HOME": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def belongs_to(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_a_picture_needs_no_other_librarys_networks_and_no_compiler(tmp_path: Path) -> None:
    assert imported_by(GENERATE, tmp_path) == []


def test_a_server_needs_no_other_librarys_networks_and_no_compiler(tmp_path: Path) -> None:
    assert imported_by(SERVE, tmp_path) == []


def test_the_command_imports_nothing_that_one_picture_does_not_need(tmp_path: Path) -> None:
    draw = ("generate", "red apple", "--steps", "1", "--megapixels", "0.25", "--output", str(tmp_path / "apple.webp"))
    done = run_python(tmp_path, "-X", "importtime", "-m", "schnell", *draw)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert {"torch", "onnxruntime", "schnell.engine.engine"} <= imported
    assert sorted(module for module in imported if belongs_to(module, UNUSED)) == []


def test_torch_is_imported_beside_the_loading_of_the_safety_check(tmp_path: Path) -> None:
    # `build_engine` starts one beside the other: whoever imports torch before it makes it wait for both in turn
    assert run_python(tmp_path, "-c", BEFORE_TORCH).stderr.strip() == "torch is here: False"
