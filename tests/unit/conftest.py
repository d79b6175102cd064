from collections.abc import Iterator

import pytest

from tls_server import TlsServer, run_tls_server


@pytest.fixture
def site() -> Iterator[TlsServer]:
    with run_tls_server() as server:
        yield server
