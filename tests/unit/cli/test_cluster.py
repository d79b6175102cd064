from typing import Any

import pytest

from schnell.errors import ConfigurationError


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_without_an_address_a_command_asks_for_one_and_starts_no_cluster_of_its_own(
    run: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("a cluster was joined or started"))
    with pytest.raises(ConfigurationError, match="--address HOST:PORT"):
        run("cluster", command)
