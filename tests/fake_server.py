"""The real server with a fake engine, in a process that was forked for it (`server_process`).

What a server imports until it is ready is imported here, once for all servers that are forked.
"""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fakes import FakeRunner
from schnell.bootstrap import hold_data, read_settings, server
from schnell.cli.http_server import listen, run_server
from schnell.cli.serve import configure_logs
from schnell.web import app, lifecycle
from schnell.web.pages.documents import find_documents, load_documents
from schnell.web.pages.languages import load_languages
from schnell.web.pages.static import load_static_files
from servers import KEY

__all__ = ["KEY", "app", "lifecycle", "serve", "server"]

load_static_files()
load_languages()
load_documents(find_documents())


def serve(environment: Mapping[str, str], step_seconds: float, errors: Path, constants: Mapping[str, Any]) -> None:
    """Serve until a signal ends it. Settings come from `environment`, as for `schnell serve`.

    `constants` are other values for some in the code, by their full names.
    """
    _redirect(errors)
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, value)
    os.environ.clear()
    os.environ.update(environment)
    settings = read_settings()
    configure_logs(settings.log_level)
    with hold_data(settings):
        listener = listen(settings.host, settings.port)
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        run_server(settings, FakeRunner(step_seconds=step_seconds), listener)


def _redirect(errors: Path) -> None:
    for stream, path in ((sys.stdout, Path(os.devnull)), (sys.stderr, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
