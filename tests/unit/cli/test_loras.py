import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mini_loras import lora_bytes, write_lora
from schnell.cli.application import build_app
from tls_server import TlsServer


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCHNELL_DATA_DIR", str(tmp_path / "data"))

    def invoke(*arguments: str, typed: str | None = None) -> Any:
        result = CliRunner().invoke(build_app(), list(arguments), input=typed, catch_exceptions=True)
        return result, result.exception

    return invoke


def printed(run: Any, *arguments: str) -> Any:
    result, error = run("loras", *arguments, "--json")
    assert error is None, result.output
    return json.loads(result.stdout)


def test_a_file_is_added_listed_shown_and_removed(run: Any, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "My Style.safetensors")
    added = printed(run, "add", str(file))
    assert (added["name"], added["rank"], added["owner"]) == ("my-style", 2, "")
    assert "my-style" in [lora["name"] for lora in printed(run, "list")]
    assert printed(run, "show", "my-style")["sha256"] == added["sha256"]
    assert printed(run, "remove", "my-style")["name"] == "my-style"
    assert "my-style" not in [lora["name"] for lora in printed(run, "list")]


def test_a_url_is_added_under_a_name(
    run: Any, site: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHNELL_LORA_PRIVATE_NETWORKS", "127.0.0.0/8,::1/128")
    monkeypatch.setenv("SCHNELL_LORA_CA_FILE", str(site.write_authority(tmp_path / "ca.pem")))
    site.serve("/style.safetensors", lora_bytes(1))
    assert printed(run, "add", site.url("/style.safetensors"), "--name", "web-style")["name"] == "web-style"


def test_inspect_tells_what_a_file_is_and_exits_1_where_it_cannot_be_served(run: Any, tmp_path: Path) -> None:
    file = str(write_lora(tmp_path / "wide.safetensors", width=3072))
    assert printed(run, "inspect", file)["made_for"] == "FLUX.1"
    result, _ = run("loras", "inspect", file, "--model", "schnell-mini")
    assert result.exit_code == 1
    assert "made for width 3072" in result.stdout


def test_what_the_command_line_says_of_a_lora_goes_before_its_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(lora_bytes(1, trigger_words="FILE"))
    words = ("--trigger", "TOK", "--trigger", "in neon", "--licence", "cc0-1.0")
    added = printed(run, "add", str(file), *words)
    assert (added["trigger_words"], added["licence"]) == (["TOK", "in neon"], "cc0-1.0")


def test_a_teams_token_is_read_from_a_pipe_and_nowhere_shown(run: Any, tmp_path: Path) -> None:
    run("teams", "create", "artists")
    result, error = run("loras", "token", "huggingface", "--team", "artists", typed="hf_secret\n")
    assert error is None
    assert "hf_secret" not in result.output
    assert b"hf_secret" not in (tmp_path / "data" / "schnell.db").read_bytes()
    assert run("loras", "token", "huggingface", "--team", "artists", "--remove")[1] is None
    assert run("loras", "token", "huggingface", "--team", "artists", "--remove")[0].exit_code == 1
    assert run("loras", "token", "nowhere", "--team", "artists", typed="x\n")[0].exit_code == 1
