"""Print the `dev` dependency group of pyproject.toml, one requirement a line (older pips know no --group)."""

import sys
import tomllib
from pathlib import Path


def read_dev_group() -> list[str]:
    """The requirements of the group, as pyproject.toml has them."""
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))
    return list(project["dependency-groups"]["dev"])


if __name__ == "__main__":
    sys.stdout.write("\n".join(read_dev_group()) + "\n")
