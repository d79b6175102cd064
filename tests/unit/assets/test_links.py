import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.assets.links import FILES_PATH, LinkSigner, load_link_secret
from schnell.errors import ForbiddenError

PATH = FILES_PATH + "development/images/2026_11_24_00_00_00_000_000001.webp"
signer = LinkSigner("secret")


def target(link: str) -> tuple[bytes, bytes]:
    path, _, query = link.partition("?")
    return path.encode(), query.encode()


def test_a_link_opens_until_it_expires() -> None:
    link = signer.sign(PATH, 1000)
    assert signer.check(*target(link), now=999) == 1000
    with pytest.raises(ForbiddenError, match="expired"):
        signer.check(*target(link), now=1000)


def test_the_signature_is_hmac_sha256_in_lower_case_hex() -> None:
    assert re.fullmatch(r"expires=1000&signature=[0-9a-f]{64}", urlsplit(signer.sign(PATH, 1000)).query)


def test_ten_thousand_mutations_of_a_link_are_refused() -> None:
    chance = random.Random(7)
    link = signer.sign(PATH, 4_000_000_000).encode()
    alphabet = [bytes([byte]) for byte in range(256)]
    for _ in range(10_000):
        mutated = _mutate(link, chance, alphabet)
        if mutated == link:
            continue
        path, _, query = mutated.partition(b"?")
        with pytest.raises(ForbiddenError):
            signer.check(path, query, now=0)


def _mutate(link: bytes, chance: random.Random, alphabet: list[bytes]) -> bytes:
    place = chance.randrange(len(link))
    kind = chance.randrange(6)
    if kind == 0:
        return link[:place] + chance.choice(alphabet) + link[place + 1 :]
    if kind == 1:
        return link[:place] + link[place + 1 :]
    if kind == 2:
        return link[:place] + chance.choice(alphabet) + link[place:]
    if kind == 3:
        return link[:place] + b"%%%02x" % link[place] + link[place + 1 :]
    if kind == 4:
        return link[:place] + link[place : place + 1].swapcase() + link[place + 1 :]
    return link + chance.choice([b"&x=1", b"#", b"?", b"&expires=9", b"%00", b" ", b"&signature=" + b"0" * 64])


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nothing_opens_by_chance(path: bytes, query: bytes) -> None:
    with pytest.raises(ForbiddenError):
        signer.check(path, query, now=0)


def test_secrets_can_be_changed_without_breaking_older_links() -> None:
    old = signer.sign(PATH, 1000)
    rotated = LinkSigner("new secret", "secret")
    assert rotated.check(*target(old), now=0) == 1000
    assert rotated.sign(PATH, 1000) != old
    with pytest.raises(ForbiddenError):
        LinkSigner("new secret").check(*target(old), now=0)


def test_the_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "link.secret"
    secret = load_link_secret(file)
    assert len(secret) == 64
    assert load_link_secret(file) == secret
    assert file.stat().st_mode & 0o077 == 0
    assert [each.name for each in file.parent.iterdir()] == ["link.secret"]


def test_servers_that_start_at_once_share_one_secret(tmp_path: Path) -> None:
    file = tmp_path / "link.secret"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: load_link_secret(file), range(32)))
    assert len(found) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["link.secret"]


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789/_-.%", max_size=80), st.integers(1, 10**12 - 1), st.text())
def test_every_link_opens_until_it_expires_and_for_its_own_path_alone(path: str, expires: int, secret: str) -> None:
    mine = LinkSigner(secret)
    raw_path, query = target(mine.sign(path, expires))
    assert mine.check(raw_path, query, now=expires - 1) == expires
    with pytest.raises(ForbiddenError, match="expired"):
        mine.check(raw_path, query, now=expires)
    with pytest.raises(ForbiddenError, match="signature is wrong"):
        mine.check(raw_path + b"x", query, now=0)
    with pytest.raises(ForbiddenError, match="signature is wrong"):
        LinkSigner(secret + "x").check(raw_path, query, now=0)


def test_a_wrong_link_is_not_told_that_it_has_expired() -> None:
    path, query = target(LinkSigner("another secret").sign(PATH, 1000))
    with pytest.raises(ForbiddenError, match="signature is wrong"):
        signer.check(path, query, now=2000)
