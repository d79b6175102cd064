"""`schnell serve`: read the settings, configure the logs, load the model, run the server."""

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from schnell.cli.output import say
from schnell.errors import ConfigurationError
from schnell.side_processes import SideProcesses

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

#: How the lines of an exception begin that hold a statement's values: PostgreSQL's, and SQLAlchemy's.
_VALUES: Final = ("DETAIL:", "CONTEXT:", "[parameters:")


def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one [default: 8000].")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the database, pictures and secrets.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name or folder [default: schnell-mini].")] = None,
) -> None:
    """Run the server. SIGTERM finishes what runs, then exits 0."""
    from schnell.bootstrap import build_server_runner, check_settings, hold_data, read_settings, without_collecting

    with without_collecting():
        from schnell.cli.http_server import listen, run_server

    settings = read_settings(host=host, port=port, data_dir=data_dir, model=model)
    configure_logs(settings.log_level)
    check_settings(settings)
    beside = SideProcesses()
    # before the model is loaded: a port that is taken ends the command at once
    with hold_data(settings), spooling_in(settings.data_dir):
        listener = listen(settings.host, settings.port)
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        say(f"loading {settings.model} …")
        if not settings.safety:
            say("WARNING: SCHNELL_SAFETY is empty: pictures are not checked at all")
        with without_collecting():
            runner = build_server_runner(settings, say, beside)
        run_server(settings, runner, beside, listener)


@contextmanager
def spooling_in(data_dir: Path) -> Iterator[None]:
    """Let uploads wait in the data folder, which has room for them, and not in /tmp, which is often memory."""
    folder, before = data_dir / "incoming", tempfile.tempdir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ConfigurationError(f"the data folder {data_dir} cannot be used: {cause.strerror}") from cause
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def configure_logs(level: str) -> None:
    """Write one JSON object a line to stderr for every logger of the process, each with its request's id.

    `level` is that of our own lines. Libraries say what they warn of: their lower lines hold whatever they were given,
    prompts and addresses among it.
    """
    import structlog

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _leave_out_values,
            _leave_out_rays,
            structlog.processors.JSONRenderer(),
        ],
    )
    # unconfigured, structlog's own loggers print coloured text to stdout, past the standard library's handlers
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]), force=True, handlers=[handler]
    )
    logging.captureWarnings(capture=True)
    logging.getLogger("schnell").setLevel(level.upper())


def _leave_out_rays(_: object, __: str, event: "EventDict") -> "EventDict":
    """Without what Ray, once imported, adds to every record of the process."""
    return {name: value for name, value in event.items() if not name.startswith("_ray_")}


def _leave_out_values(_logger: object, _name: str, event: "EventDict") -> "EventDict":
    """Tracebacks without the values that a database repeats in its complaints: prompts, names and addresses."""
    if "exception" in event:
        lines = str(event["exception"]).splitlines()
        event["exception"] = "\n".join(line for line in lines if not line.lstrip().startswith(_VALUES))
    return event
