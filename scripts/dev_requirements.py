"""Print the `dev` dependency group of pyproject.toml, one requirement a line (older pips know no --group)."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))
sys.stdout.write("\n".join(project["dependency-groups"]["dev"]) + "\n")
