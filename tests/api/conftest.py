from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from servers import Server, run_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with run_server(tmp_path) as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    """A server with other settings: `async with serve(rate_limit="2/minute") as server`."""
    return lambda **settings: run_server(tmp_path, **settings)
