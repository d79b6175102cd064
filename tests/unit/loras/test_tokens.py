import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from lora_libraries import TEAM, MakeLibrary, resolve, serve_gated
from mini_loras import lora_bytes
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import source_tokens
from schnell.errors import InvalidFieldError, NotFoundError
from schnell.loras.tokens import SITES, SourceTokens, read_site
from tls_server import TlsServer


def written_to(folder: Path) -> bytes:
    """The bytes of the database, its journal included."""
    return b"".join(file.read_bytes() for file in folder.glob("schnell.db*"))


async def test_a_token_is_encrypted_where_it_lies_and_in_no_log(
    make: MakeLibrary, site: TlsServer, library_database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    serve_gated(site, "me/private", lora_bytes(4), "hf_very_secret")
    await SourceTokens(library_database, ["secret"]).keep(TEAM, "huggingface", "hf_very_secret", now())
    assert await SourceTokens(library_database, ["newer", "secret"]).of_team(TEAM) == {"huggingface": "hf_very_secret"}
    assert await SourceTokens(library_database, ["another"]).of_team(TEAM) == {}
    await resolve(make(), "me/private")
    kept = written_to(tmp_path)
    assert kept
    assert b"hf_very_secret" not in kept
    assert "hf_very_secret" not in caplog.text


async def test_a_team_has_one_token_for_each_site(database: Database) -> None:
    tokens = SourceTokens(database, ["secret"])
    await tokens.keep(TEAM, "huggingface", " hf_old\n", now())
    await tokens.keep(TEAM, "huggingface", "hf_new", now())
    await tokens.keep(TEAM, "civitai", "c", now())
    await tokens.keep("team-2", "replicate", "r", now())
    assert await tokens.of_team(TEAM) == {"huggingface": "hf_new", "civitai": "c"}
    assert await tokens.sites_of(TEAM) == {"huggingface", "civitai"}
    await tokens.forget(TEAM, "civitai")
    assert await tokens.of_team(TEAM) == {"huggingface": "hf_new"}
    assert await tokens.of_team("team-2") == {"replicate": "r"}
    with pytest.raises(NotFoundError, match="the team has no token for civitai"):
        await tokens.forget(TEAM, "civitai")


async def test_a_changed_secret_reads_older_tokens_and_writes_with_the_newer(database: Database) -> None:
    await SourceTokens(database, ["old"]).keep(TEAM, "civitai", "c", now())
    both = SourceTokens(database, ["new", "old"])
    assert await both.of_team(TEAM) == {"civitai": "c"}
    await both.keep(TEAM, "replicate", "r", now())
    assert await SourceTokens(database, ["new"]).of_team(TEAM) == {"replicate": "r"}
    assert await SourceTokens(database, ["new"]).sites_of(TEAM) == {"civitai", "replicate"}


async def test_one_token_twice_is_encrypted_differently(database: Database) -> None:
    tokens = SourceTokens(database, ["secret"])
    await tokens.keep(TEAM, "civitai", "the-same", now())
    await tokens.keep("team-2", "civitai", "the-same", now())
    async with database.read() as connection:
        stored = list((await connection.execute(select(source_tokens.c.token))).scalars())
    assert len(set(stored)) == 2
    assert all("the-same" not in each for each in stored)


@pytest.mark.parametrize("token", ["", " ", "a b", "a\nb", "é", "x" * 501, "a\x7fb"])
async def test_what_could_not_be_sent_in_a_header_is_refused(library_database: Database, token: str) -> None:
    with pytest.raises(InvalidFieldError, match="1-500 ASCII characters without spaces"):
        await SourceTokens(library_database, ["secret"]).keep(TEAM, "civitai", token, now())


@given(st.text(max_size=20) | st.sampled_from(SITES))
def test_a_site_is_read_by_its_exact_name(text: str) -> None:
    if text in SITES:
        assert read_site(text) == text
        return
    with pytest.raises(NotFoundError, match="there are huggingface, civitai, replicate"):
        read_site(text)
