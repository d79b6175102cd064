from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed_version() -> str:
    try:
        return version("schnell")
    except PackageNotFoundError:  # run from PYTHONPATH=src, as on a bare GPU machine
        return "0.0.0+source"


ENGINE_VERSION: Final = _installed_version()
