"""Write constraints.txt: one version for every package that `make setup` installs. Run it with `make lock`.

pip resolves pyproject.toml for an empty environment, without installing it, and reports what it would take.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dev_requirements import read_dev_group

CONSTRAINTS = Path("constraints.txt")
OLDEST_PYTHON = (3, 11)
#: torch's CUDA packages: only its CUDA build needs them, and that names their exact versions itself.
CUDA = re.compile(r"nvidia-|cuda-|triton$")
HEAD = """\
# Every version that `make setup` and `make serve` install. Made by `make lock`; not edited by hand.
# Resolved on Linux and Python 3.11, the oldest that is supported: its releases also run on newer ones.
"""


def resolve() -> list[dict[str, Any]]:
    """What pip would install into an empty environment: one entry a package, in pip's report format."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        command = [f"{folder}/bin/pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet"]
        command += ["--report", f"{folder}/report.json", "--editable", ".", *read_dev_group()]
        subprocess.run(command, check=True)
        report = json.loads(Path(folder, "report.json").read_text("utf-8"))
    return list(report["install"])


def to_lines(packages: Iterable[dict[str, Any]]) -> list[str]:
    """A constraint a package, in alphabetical order, without this project and without builds' labels (`+cpu`)."""
    versions = {}
    for package in packages:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        if name != "schnell" and not CUDA.match(name):
            versions[name] = package["metadata"]["version"].partition("+")[0]
    return [f"{name}=={version}\n" for name, version in sorted(versions.items())]


def main() -> None:
    """Resolve, and write the file."""
    if sys.version_info[:2] != OLDEST_PYTHON:
        raise SystemExit("constraints are resolved on the oldest Python that is supported: make lock PYTHON=python3.11")
    lines = to_lines(resolve())
    CONSTRAINTS.write_text(HEAD + "".join(lines), "utf-8")
    sys.stderr.write(f"wrote {len(lines)} versions to {CONSTRAINTS}\n")


if __name__ == "__main__":
    main()
