"""The key in the database: one for all servers, encrypted, and the first server's wins."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from counts import repeats
from proof import NOW, keys
from schnell.accounts.signing_keys import find_shared_keys, replace_keys, share_keys
from schnell.bootstrap import build_proof, build_shared_proof, read_settings
from schnell.database.session import Database
from schnell.database.tables import signing_keys
from schnell.errors import CredentialsError
from schnell.provenance.key_files import find_keys, keep_keys, keys_path
from schnell.provenance.keys import SigningKeys, make_keys

START = "from schnell.bootstrap import *; build_shared_proof(read_settings()); print('ready')"


async def test_the_first_servers_key_is_everybodys(database: Database) -> None:
    async def start(name: str) -> SigningKeys:
        async with database.write() as connection:
            return await share_keys(connection, ["secret"], lambda: make_keys(name, NOW))

    found = await asyncio.gather(*(start(f"server {number}") for number in range(4)))
    assert len({each.leaf.serial_number for each in found}) == 1


async def test_what_lies_in_the_database_is_encrypted(database: Database) -> None:
    async with database.write() as connection:
        await share_keys(connection, ["secret"], keys)
        sealed = (await connection.execute(select(signing_keys.c.sealed))).scalar_one()
        found = await find_shared_keys(connection, ["newer", "secret"])
    assert found is not None
    assert found.to_pem() == keys().to_pem()
    assert "PRIVATE" not in sealed
    assert keys().key_pem().splitlines()[1] not in sealed


async def test_a_server_with_another_secret_is_told_what_to_set(database: Database) -> None:
    async with database.write() as connection:
        await share_keys(connection, ["secret"], keys)
    with pytest.raises(CredentialsError, match="SCHNELL_LINK_SECRETS"):
        async with database.write() as connection:
            await share_keys(connection, ["another"], keys)


async def test_a_secret_that_was_replaced_can_be_dropped_after_the_next_start(database: Database) -> None:
    for secrets in (["old"], ["new", "old"], ["new"]):
        async with database.write() as connection:
            found = await share_keys(connection, secrets, keys)
        assert found.to_pem() == keys().to_pem()


async def test_replaced_keys_are_the_ones_that_are_found(database: Database) -> None:
    other = make_keys("Another", NOW)
    async with database.write() as connection:
        for each in (keys(), other):
            await replace_keys(connection, ["secret"], each)
        found = await find_shared_keys(connection, ["secret"])
    assert found is not None
    assert found.leaf == other.leaf


def test_a_server_and_the_command_sign_with_one_key(tmp_path: Path) -> None:
    settings = read_settings(data_dir=tmp_path)
    served, drawn = build_shared_proof(settings), build_proof(settings)
    assert served.signer is not None
    assert drawn.signer is not None
    assert served.signer.keys.leaf == drawn.signer.keys.leaf


def test_a_folder_of_another_key_takes_the_databases(tmp_path: Path) -> None:
    settings = read_settings(
        data_dir=tmp_path / "one", database_url=f"sqlite:{tmp_path / 'shared.db'}", link_secrets="s"
    )
    first = build_shared_proof(settings).signer
    second_folder = settings.model_copy(update={"data_dir": tmp_path / "two"})
    build_proof(second_folder)  # a key of its own, as `schnell generate` makes one
    second = build_shared_proof(second_folder).signer
    assert first is not None
    assert second is not None
    assert second.keys.leaf == first.keys.leaf
    kept = find_keys(tmp_path / "two")
    assert kept is not None
    assert kept.leaf == first.keys.leaf


def test_a_key_that_has_expired_stops_the_start_and_is_named(tmp_path: Path) -> None:
    keep_keys(tmp_path, make_keys("Old Studio", NOW.replace(year=2010)))
    with pytest.raises(CredentialsError, match=r"CN=Old Studio signer,O=Old Studio expired on 2020"):
        build_shared_proof(read_settings(data_dir=tmp_path))


def test_a_damaged_key_file_stops_the_start_and_is_named(tmp_path: Path) -> None:
    build_shared_proof(read_settings(data_dir=tmp_path))
    keys_path(tmp_path).write_text("broken")
    with pytest.raises(CredentialsError, match=str(keys_path(tmp_path))):
        build_shared_proof(read_settings(data_dir=tmp_path))


def start_process(folder: Path) -> "subprocess.Popen[str]":
    environment = {"SCHNELL_DATA_DIR": str(folder), "PYTHONPATH": ":".join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", START], env=environment, stdout=subprocess.PIPE, text=True)


def test_two_servers_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    processes = [start_process(tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["ready\n"] * 2
    signer = build_shared_proof(read_settings(data_dir=tmp_path)).signer
    kept = find_keys(tmp_path)
    assert signer is not None
    assert kept is not None
    assert kept.leaf == signer.keys.leaf


@pytest.mark.parametrize("attempt", range(repeats(20)))
def test_a_server_that_is_killed_while_it_makes_keys_leaves_none_or_good_ones(attempt: int, tmp_path: Path) -> None:
    process = start_process(tmp_path)
    # at another moment each time, from before the database to after the folder
    deadline = time.monotonic() + 60
    watched = [tmp_path / "schnell.db", tmp_path / "link.secret", keys_path(tmp_path).parent, keys_path(tmp_path)]
    while not watched[attempt % len(watched)].exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    signer = build_shared_proof(read_settings(data_dir=tmp_path)).signer
    kept = find_keys(tmp_path)
    assert signer is not None
    assert kept is not None
    assert kept.to_pem() == signer.keys.to_pem()
