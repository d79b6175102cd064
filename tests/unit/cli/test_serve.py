import json
import logging
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from fakes import FakeRunner
from schnell import bootstrap
from schnell.cli.serve import configure_logs, spooling_in
from schnell.errors import ConfigurationError, DatabaseUnavailableError, StartError
from schnell.web import lifecycle


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("schnell")
    handlers, level, own_level = root.handlers[:], root.level, own.level
    yield
    root.handlers, root.level = handlers, level
    own.setLevel(own_level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return [json.loads(line) for line in printed.err.splitlines()]


def test_a_log_line_is_a_json_object_on_stderr_with_the_requests_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        logging.getLogger("schnell.web").warning("%d pictures removed", 3, extra={"team": "acme"})
    [line] = _lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "3 pictures removed",
        "level": "warning",
        "logger": "schnell.web",
        "request_id": "r-1",
        "team": "acme",
    }


def test_loggers_of_structlog_write_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("schnell.serving")
    configure_logs("info")
    log.info("step", rows=4)
    try:
        int("no number")
    except ValueError:
        log.exception("generation failed", job_id="j-1")
    step, failure = _lines(capsys)
    assert (step["event"], step["level"], step["logger"], step["rows"]) == ("step", "info", "schnell.serving", 4)
    assert (failure["level"], failure["job_id"]) == ("error", "j-1")
    assert "ValueError: invalid literal" in failure["exception"]


def test_the_level_holds_for_every_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning")
    logging.getLogger("a").info("not this")
    structlog.get_logger("b").info("nor this")
    logging.getLogger("c").warning("this")
    assert [line["event"] for line in _lines(capsys)] == ["this"]


def test_libraries_say_nothing_below_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug")
    for name in ("httpx", "botocore.auth", "uvicorn.error", "alembic.runtime"):
        logging.getLogger(name).info("not this")
        logging.getLogger(name).warning("this")
    assert [line["event"] for line in _lines(capsys)] == ["this"] * 4


def test_a_databases_complaint_is_logged_without_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug")
    complaint = "[SQL: INSERT]\n[parameters: ('a secret prompt',)]\nDETAIL:  Key (name)=(a secret name) exists."
    logging.getLogger("schnell.web").error("it failed", exc_info=RuntimeError(complaint))
    [line] = _lines(capsys)
    assert "RuntimeError" in line["exception"]
    assert "secret" not in line["exception"]


def test_uploads_wait_in_the_data_folder(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    with spooling_in(tmp_path / "data"):
        assert Path(tempfile.gettempdir()).parent == tmp_path / "data"
    assert tempfile.gettempdir() == before
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"), spooling_in(tmp_path / "file" / "data"):
        pass


def test_a_port_that_is_taken_ends_the_command_before_the_model_is_loaded(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "build_server_runner", lambda *_: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}: .*choose another --port"):
            run("serve", "--port", str(port))


def test_a_server_without_a_safety_check_says_so(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "build_server_runner", stop)
    monkeypatch.setenv("SCHNELL_SAFETY", "")
    told = invoke("serve", "--port", "0").stderr
    assert "loading schnell-mini" in told
    assert "pictures are not checked at all" in told


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (("SCHNELL_BOOTSTRAP_KEY", "short"), "at least 16 characters"),
        (("SCHNELL_SAFETY", "open-nsfw, foo"), "no safety checker is called 'foo'.* adamcodd"),
        (("SCHNELL_SIGN_IN_RATE_LIMIT", "often"), "60/minute"),
        (("SCHNELL_VERIFY_RATE_LIMIT", "often"), "60/minute"),
        (("SCHNELL_OIDC_ISSUER", "https://sign-in.example.org"), "SCHNELL_OIDC_CLIENT_ID"),
        (("SCHNELL_MODEL_ALIASES", "="), "NAME"),
        (("SCHNELL_ASSETS_URL", "ftp://pictures"), "s3://BUCKET"),
        (("SCHNELL_LORA_CA_FILE", "nowhere.pem"), "LoRA downloads"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_command_before_anything_is_loaded_or_made(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: tuple[str, str], told: str
) -> None:
    name, value = setting
    monkeypatch.setattr(bootstrap, "build_server_runner", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=told) as refused:
        run("serve", "--port", "0")
    assert refused.value.is_wrong_value
    assert name in refused.value.message or name == "SCHNELL_LORA_CA_FILE"
    assert not (tmp_path / "data").exists()


def test_what_keeps_a_server_from_starting_is_the_commands_error_and_no_trace_in_the_log(
    invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def migrate(_: object) -> None:
        raise DatabaseUnavailableError("the database is away")

    monkeypatch.setattr(bootstrap, "build_server_runner", lambda *_: FakeRunner())
    monkeypatch.setattr(lifecycle, "migrate", migrate)
    done = invoke("serve", "--port", "0")
    assert isinstance(done.exception, DatabaseUnavailableError)
    assert "Traceback" not in done.stderr


def test_a_failure_of_the_start_that_nobody_expects_is_logged_with_its_trace(
    invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def migrate(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bootstrap, "build_server_runner", lambda *_: FakeRunner())
    monkeypatch.setattr(lifecycle, "migrate", migrate)
    done = invoke("serve", "--port", "0")
    assert isinstance(done.exception, StartError)
    assert "ZeroDivisionError" in done.stderr
