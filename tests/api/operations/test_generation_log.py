"""The log's line for each generation, and what gets no line."""

import logging
from typing import Any

import pytest

from schnell.generations import end_log
from servers import Server


def ends(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "schnell.generations.end_log"]


async def test_a_generation_is_one_line_that_says_who_and_how_long(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "schnell")
    answer = (await server.draw(num_outputs=2)).json()["aiRecord"]
    [line] = ends(caplog)
    assert line["record"] == answer["uuid"]
    assert (line["outcome"], line["pictures"], line["dialect"]) == ("SUCCESS", 2, "onemin")
    assert line["user"] == answer["teamUser"]["userName"]
    assert line["team"] == "Default team"
    assert "test-key-of-the-first-team".startswith(line["key"])
    assert line["cost"] == 800
    assert line["seconds"]["all"] >= line["seconds"]["wait"] >= 0


async def test_a_failure_has_its_code_and_costs_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "schnell")
    server.runner.flagged = [0]
    await server.draw()
    [line] = ends(caplog)
    assert (line["outcome"], line["cost"], line["levelname"]) == ("NSFW_CONTENT", 0, "INFO")


async def test_no_line_holds_a_prompt(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "schnell")
    await server.draw(prompt="an unmistakable walrus")
    assert len(ends(caplog)) == 1
    assert not [record for record in caplog.records if "walrus" in str(vars(record))]


async def test_static_files_are_lines_of_debug_only(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "schnell")
    page = (await server.client.get("/sign-in")).text
    script = page.partition('src="/static/')[2].partition('"')[0]
    assert (await server.client.get(f"/static/{script}")).status_code == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "schnell.access"]
    assert lines == ["GET /sign-in 200"]


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("black-light", "black-light"),
        ("fofr/flux-black-light", "fofr/flux-black-light"),
        ("https://user@cdn.example:8443/signed-s3cr3t/a.safetensors", "https://cdn.example/…"),
    ],
)
def test_of_a_loras_address_the_log_names_the_host_alone(reference: str, shown: str) -> None:
    assert end_log._shown(reference) == shown
