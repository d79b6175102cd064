import os
from pathlib import Path
from typing import Final

_EMBEDDED: Final = Path(__file__).parent / "embedded"


def cache_home() -> Path:
    """The folder for what can be made again: `$XDG_CACHE_HOME/schnell`, or `~/.cache/schnell`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schnell"


def models_home() -> Path:
    """The folder that pulled models lie in: `$SCHNELL_MODELS_DIR`, or `models` in the cache."""
    return Path(os.environ.get("SCHNELL_MODELS_DIR") or cache_home() / "models")


def embedded_home() -> Path:
    """The folder of weights that come with the package."""
    return _EMBEDDED
