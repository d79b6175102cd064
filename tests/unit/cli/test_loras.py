from pathlib import Path
from typing import Any

import pytest

from mini_loras import lora_bytes, write_lora
from schnell.errors import NotFoundError
from tls_server import TlsServer


def test_a_file_is_added_listed_shown_and_removed(run: Any, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "My Style.safetensors")
    added = run("loras", "add", file, "--json")
    assert (added["name"], added["rank"], added["owner"]) == ("my-style", 2, "")
    assert "my-style" in [lora["name"] for lora in run("loras", "list", "--json")]
    assert run("loras", "show", "my-style", "--json")["sha256"] == added["sha256"]
    assert run("loras", "remove", "my-style", "--json")["name"] == "my-style"
    assert "my-style" not in [lora["name"] for lora in run("loras", "list", "--json")]


def test_without_json_the_name_is_on_stdout_and_the_rest_on_stderr(run: Any, tmp_path: Path) -> None:
    added = run("loras", "add", write_lora(tmp_path / "style.safetensors"))
    assert added.stdout == "style\n"
    assert "added style (" in added.stderr
    assert run("loras", "list").stdout.split()[:3] == ["name", "rank", "layout"]
    shown = dict(line.split(maxsplit=1) for line in run("loras", "show", "style").stdout.splitlines())
    assert (shown["name"], shown["rank"]) == ("style", "2")
    assert "licence" not in shown
    assert run("loras", "remove", "style").stderr == "removed style\n"


def test_a_teams_lora_is_hidden_from_the_others(run: Any, tmp_path: Path) -> None:
    run("teams", "create", "artists")
    run("loras", "add", write_lora(tmp_path / "style.safetensors"), "--team", "artists")
    assert run("loras", "show", "style", "--team", "artists", "--json")["name"] == "style"
    with pytest.raises(NotFoundError, match="style"):
        run("loras", "show", "style")


def test_a_url_is_added_under_a_name(
    run: Any, site: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHNELL_LORA_PRIVATE_NETWORKS", "127.0.0.0/8,::1/128")
    monkeypatch.setenv("SCHNELL_LORA_CA_FILE", str(site.write_authority(tmp_path / "ca.pem")))
    site.serve("/style.safetensors", lora_bytes(1))
    added = run("loras", "add", site.url("/style.safetensors"), "--name", "web-style", "--json")
    assert added["name"] == "web-style"


def test_inspect_tells_what_a_file_is_and_exits_1_where_it_cannot_be_served(run: Any, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "wide.safetensors", width=3072)
    assert run("loras", "inspect", file, "--json")["made_for"] == "FLUX.1"
    result = run("loras", "inspect", file, "--model", "schnell-mini")
    assert result.exit_code == 1
    assert "made for width 3072" in result.stdout


def test_inspect_prints_what_it_knows_and_leaves_out_the_rest(run: Any, tmp_path: Path) -> None:
    result = run("loras", "inspect", write_lora(tmp_path / "style.safetensors"))
    assert result.exit_code == 0
    lines = {line[:14].strip(): line[15:] for line in result.stdout.splitlines()}
    assert lines["keys"] == "2 of 2 match a layer of FLUX.1"
    assert lines["rank"] == "2"
    assert {"licence", "problem"}.isdisjoint(lines)


def test_what_the_command_line_says_of_a_lora_goes_before_its_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(lora_bytes(1, trigger_words="FILE"))
    words = ("--trigger", "TOK", "--trigger", "in neon", "--licence", "cc0-1.0")
    added = run("loras", "add", file, *words, "--json")
    assert (added["trigger_words"], added["licence"]) == (["TOK", "in neon"], "cc0-1.0")


def test_a_teams_token_is_read_from_a_pipe_and_nowhere_shown(run: Any, tmp_path: Path) -> None:
    run("teams", "create", "artists")
    result = run("loras", "token", "huggingface", "--team", "artists", typed="hf_secret\n")
    assert "hf_secret" not in result.output
    assert b"hf_secret" not in (tmp_path / "data" / "schnell.db").read_bytes()
    assert run("loras", "token", "huggingface", "--team", "artists", "--remove").exit_code == 0
    with pytest.raises(NotFoundError):
        run("loras", "token", "huggingface", "--team", "artists", "--remove")
    with pytest.raises(NotFoundError, match="no site 'nowhere'"):
        run("loras", "token", "nowhere", "--team", "artists", typed="x\n")
