"""One cluster for all tests here, in a network namespace of its own, with token authentication."""

import os
from collections.abc import Iterator

import pytest

# before Ray is imported: it reads its token once
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a-token-of-the-tests-that-is-long-enough",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}

from clusters import TestCluster, new_cluster, ray_environment
from own_network import own_network
from schnell.serving.ray_cluster import join, leave


@pytest.fixture(scope="session")
def network() -> Iterator[None]:
    try:
        with own_network():
            yield
    except PermissionError:
        pytest.skip("Ray listens on all interfaces: these tests need root, for a network of their own")


@pytest.fixture(scope="session")
def environment(network: None) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for name, value in ray_environment().items():
        patch.setenv(name, value)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def cluster(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    """A cluster that this process has joined."""
    started = new_cluster(tmp_path_factory.mktemp("cluster"))
    try:
        started.start_head()
        join(started.address)
        yield started
        leave()
    finally:
        started.stop()
