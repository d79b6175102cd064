"""The real server with a fake engine, in a process that was forked for it (`server_process`).

What a server imports until it is ready is imported here, once for all servers that are forked.
"""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from fakes import FakeRunner
from schnell.bootstrap import hold_data, read_settings, server
from schnell.cli.http_server import listen, run_server
from schnell.cli.serve import configure_logs
from schnell.side_processes import SideProcesses
from schnell.web import app, lifecycle
from servers import read_package

__all__ = ["app", "lifecycle", "serve", "server"]

read_package()


#: A variable of the environment with other values for constants of the code, numbers or what another module has:
#: "module.NAME=1.5 module.OTHER=other:name".
CONSTANTS = "FAKE_SERVER_CONSTANTS"


def serve(environment: Mapping[str, str], step_seconds: float, errors: Path) -> None:
    """Serve until a signal ends it. Settings come from `environment`, as for `schnell serve`; see also `CONSTANTS`."""
    _redirect(errors)
    for given in environment.get(CONSTANTS, "").split():
        name, _, value = given.partition("=")
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, _read_value(value))
    os.environ.clear()
    os.environ.update(environment)
    settings = read_settings()
    configure_logs(settings.log_level)
    with hold_data(settings):
        listener = listen(settings.host, settings.port)
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        run_server(settings, FakeRunner(step_seconds=step_seconds), SideProcesses(), listener)


def _read_value(text: str) -> object:
    module, has_module, name = text.partition(":")
    return getattr(import_module(module), name) if has_module else float(text)


def _redirect(errors: Path) -> None:
    for stream, path in ((sys.stdout, Path(os.devnull)), (sys.stderr, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
