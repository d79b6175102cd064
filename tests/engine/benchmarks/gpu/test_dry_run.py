"""The whole of `make gpu-check` on the CPU, with no other libraries than a machine that is lent has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from schnell.benchmarks.gpu.sections import SECTIONS

#: Runs the check while every installed library is invisible but torch, diffusers, structlog, those that the machine's
#: image has, and what these need in turn.
BARE = """
import re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
there, wanted = set(), ['torch', 'diffusers', 'structlog', 'transformers', 'accelerate', 'peft', 'pillow', 'ml-dtypes']
while wanted:
    name = re.sub('[-_.]+', '-', wanted.pop()).lower()
    if name in there: continue
    try: needed = requires(name) or []
    except PackageNotFoundError: continue
    there.add(name)
    wanted += [re.split('[^A-Za-z0-9_.-]', each)[0] for each in needed if 'extra ==' not in each]
there -= {'typer', 'rich', 'pydantic', 'pydantic-core', 'pydantic-settings'}  # which ours must not be met to need
visible = lambda owners: any(re.sub('[-_.]+', '-', owner).lower() in there for owner in owners)
hidden = {name for name, owners in packages_distributions().items() if not visible(owners)} - {'schnell'}
class Bare:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition('.')[0] in hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)
sys.meta_path = [Bare(finder) if hasattr(finder, 'find_spec') else finder for finder in sys.meta_path]
for name in ('pydantic', 'pydantic_settings', 'typer', 'fastapi', 'sqlalchemy'):
    try: __import__(name)
    except ModuleNotFoundError: continue
    raise SystemExit(name + ' can be seen')
from schnell.benchmarks.gpu.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run_dry(path: Path) -> tuple[dict[str, Any], str]:
    """What the check writes to `path`, and the table that it prints."""
    command = [sys.executable, "-c", BARE, "--dry", "--json", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"SCHNELL_COMMIT": "abc"}
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    return json.loads(path.read_text("utf-8")), done.stdout


# one test: the run takes half a minute, and tests that other workers take over would each repeat it
def test_a_dry_run_comes_to_its_end_has_every_figure_and_promises_nothing(tmp_path: Path) -> None:
    written, table = run_dry(tmp_path / "gpu.json")
    assert SECTIONS
    wrong = {name: problem for name in SECTIONS if (problem := problem_of(written[name]))}
    assert not wrong
    # it says what it was
    assert {bar["met"] for bar in written["bars"]} == {None}
    assert (written["about"]["dry"], written["about"]["commit"]) == (True, "abc")
    assert "NOT MET" not in table
    # small networks agree with themselves
    exact = written["parity"]["figures"]["exact"]
    assert exact["same_bytes"]
    assert exact["batch_db"] >= 45
    assert written["compiled"]["figures"]["fifty_loras"]["recompilations"] == 0


def problem_of(section: dict[str, Any]) -> Any:
    """What is wrong with a section; kernels that a CPU lacks are the only figures that may be missing."""
    figures = section["figures"]
    if section["error"] is not None or not figures:
        return section["error"] or "no figures"
    return {
        key: value
        for key, value in figures.items()
        if isinstance(value, dict) and "error" in value and not key.startswith("attention_")
    }


def test_the_sections_fit_the_nine_minutes_that_a_lent_machine_gives() -> None:
    assert sum(section.seconds for section in SECTIONS.values()) <= 540


def test_the_sections_that_are_part_of_the_contract_are_there() -> None:
    assert {"parity", "memory", "steps", "lora", "serve", "small_cards", "failures"} <= set(SECTIONS)
