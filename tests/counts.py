"""How often a check repeats: a tenth in `make test`, the full count in `make soak`."""

import os
from typing import Final

SOAK: Final = os.environ.get("SCHNELL_SOAK") == "1"


def repeats(full: int) -> int:
    return full if SOAK else max(1, full // 10)
