from pathlib import Path
from typing import Annotated

import typer

from schnell.cli.output import say


def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one [default: 8000].")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the database, pictures and secrets.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name or folder [default: schnell-mini].")] = None,
) -> None:
    """Run the server. SIGTERM finishes what runs, then exits 0."""
    from schnell.bootstrap import (build_server_runner, read_settings)
    from schnell.cli.http_server import (listen, run_server)
    from schnell.cli.logs import configure_logs

    settings = read_settings(host=host, port=port, data_dir=data_dir, model=model)
    configure_logs(settings.log_level)
    listener = listen(settings.host, settings.port)
    settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    say(f"loading {settings.model} …")
    if not settings.safety:
        say("WARNING: SCHNELL_SAFETY is empty: pictures are not checked at all")
    run_server(settings, build_server_runner(settings), listener)
