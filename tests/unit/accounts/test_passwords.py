import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.accounts.passwords import (
    Login,
    PasswordHashes,
    check_password,
    find_login,
    find_login_of,
    fold_name,
    keep_login,
)
from schnell.accounts.teams import add_member, create_team, find_member
from schnell.database.session import Database
from schnell.errors import ConflictError, InvalidFieldError, RateLimitedError

PASSWORD = "correct horse battery"


async def test_a_hash_fits_its_password_alone_and_says_how_it_was_made() -> None:
    hashes = PasswordHashes()
    made = await hashes.make(PASSWORD)
    login = Login("user", "ada", made)
    # OWASP's least for Argon2id: 19 MiB, two passes, one lane
    assert re.match(r"\$argon2id\$v=19\$m=19456,t=2,p=1\$", made)
    assert await hashes.fits(PASSWORD, login)
    assert not await hashes.fits(PASSWORD.title(), login)
    # salted: two people with one password have different hashes
    assert await hashes.make(PASSWORD) != made


async def test_nobodys_password_never_fits() -> None:
    hashes = PasswordHashes()
    assert not await hashes.fits(PASSWORD, None)
    assert not await hashes.fits("", None)


async def test_a_flood_of_passwords_is_refused_at_once() -> None:
    hashes = PasswordHashes(at_once=1, most_waiting=2)
    found = await asyncio.gather(*(hashes.make(PASSWORD) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(each, RateLimitedError) for each in found) == 3
    # and the next finds a place again
    assert await hashes.make(PASSWORD)


def test_a_name_has_to_fit_in_the_form_that_is_compared() -> None:
    check_password(PASSWORD, "x" * 200)
    with pytest.raises(InvalidFieldError, match="name"):
        check_password(PASSWORD, "\ufdfa" * 12)


@given(st.text(min_size=1, max_size=50))
def test_a_folded_name_is_one_however_it_was_written(name: str) -> None:
    folded = fold_name(name)
    assert fold_name(f"  {name.upper()} ") == fold_name(name.upper())
    assert fold_name(folded) in {folded, fold_name(fold_name(folded))}


@pytest.mark.parametrize("password", ["", "elevenchars", "x" * 257, "aaaabbbbaaaabbbb", "someone@example.org"])
def test_what_is_quickly_guessed_is_refused(password: str) -> None:
    with pytest.raises(InvalidFieldError, match="password"):
        check_password(password, "Someone@Example.org")


@pytest.mark.parametrize("password", [PASSWORD, "twelve chars", "pässwörter sind lang", "q" * 8 + "wert"])
def test_length_is_all_that_is_asked_for(password: str) -> None:
    check_password(password, "ada")


async def test_a_login_is_found_by_any_spelling_and_is_one_persons(database: Database) -> None:
    async with database.write() as connection:
        team = await create_team(connection, "acme", owner="Ada")
        ada = await find_member(connection, team.id)
        bob = await add_member(connection, team.id, "Bob")
        await keep_login(connection, ada.user_id, "Ada@Example.org", "first")
        await keep_login(connection, ada.user_id, "ada@example.org ", "second")
        found = await find_login(connection, " ADA@EXAMPLE.ORG")
        assert found == Login(ada.user_id, "ada@example.org", "second")
        assert await find_login_of(connection, bob.user_id) is None
    with pytest.raises(ConflictError, match="this name is taken"):
        async with database.write() as connection:
            await keep_login(connection, bob.user_id, "ADA@example.org", "other")
    async with database.read() as connection:
        assert await find_login(connection, "ada@example.org") == found
