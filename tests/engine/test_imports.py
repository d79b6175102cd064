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
SERVE = """
import schnell.web.app
from schnell.bootstrap import build_server_runner, read_settings

build_server_runner(read_settings(), lambda _: None)
"""


def imported_by(script: str, folder: Path) -> list[str]:
    asked = f"import os, sys; print(*sorted(name for name in sys.modules if name.startswith({UNWANTED})), sep=chr(10))"
    # a server that is never closed has threads amid their work, and an interpreter that ends beside them may abort
    asked += "; sys.stdout.flush(); os._exit(0)"
    environment = {"SCHNELL_DATA_DIR": str(folder), "PYTHONPATH": ":".join(sys.path), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script + asked], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_picture_needs_no_other_librarys_networks_and_no_compiler(tmp_path: Path) -> None:
    assert imported_by(GENERATE, tmp_path) == []


def test_a_server_needs_no_other_librarys_networks_and_no_compiler(tmp_path: Path) -> None:
    assert imported_by(SERVE, tmp_path) == []
