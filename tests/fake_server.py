"""The real server in a process of its own, with a fake engine: `python tests/fake_server.py STEP_SECONDS`.

Settings come from the environment, as for `schnell serve`.
"""

import sys

from fakes import FakeRunner
from schnell.bootstrap import hold_data, read_settings
from schnell.cli.http_server import listen, run_server
from schnell.cli.serve import configure_logs

if __name__ == "__main__":
    settings = read_settings()
    configure_logs(settings.log_level)
    with hold_data(settings):
        listener = listen(settings.host, settings.port)
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        run_server(settings, FakeRunner(step_seconds=float(sys.argv[1])), listener)
