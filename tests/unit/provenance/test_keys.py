"""The key that signs, and its certificates."""

import stat
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proof import NOW, keys
from schnell.errors import CredentialsError
from schnell.provenance.credentials import CredentialsSigner
from schnell.provenance.key_files import find_keys, keep_keys, keys_path, load_or_make_keys
from schnell.provenance.keys import SigningKeys, make_keys, read_keys, renew_keys


def test_keys_are_the_same_after_a_file() -> None:
    found = read_keys(keys().to_pem())
    assert (found.to_pem(), found.roots, found.is_ours) == (keys().to_pem(), keys().roots, True)


def test_a_new_leaf_keeps_the_root_that_others_trust() -> None:
    renewed = renew_keys(keys(), "Test Studio", NOW)
    renewed.check(NOW)
    assert renewed.roots == keys().roots
    assert renewed.leaf != keys().leaf


def test_a_root_that_ends_too_soon_is_followed_by_another_and_kept() -> None:
    old = make_keys("Test Studio", NOW - timedelta(days=2000))
    renewed = renew_keys(read_keys(old.to_pem()), "Test Studio", NOW)
    renewed.check(NOW)
    assert len(renewed.roots) == 2
    assert read_keys(renewed.to_pem()).roots == renewed.roots
    assert old.roots[0] in renewed.roots


@pytest.mark.parametrize(
    ("pem", "complaint"),
    [
        ("", "no certificate"),
        ("hello", "no certificate"),
        (keys().key_pem(), "no certificate"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + keys().roots_pem(), "cannot be read"),
        (keys().key_pem() + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
    ],
)
def test_a_text_without_keys_is_refused_with_what_is_missing(pem: str, complaint: str) -> None:
    with pytest.raises(CredentialsError, match=complaint):
        read_keys(pem)


def test_certificates_alone_are_those_of_a_key_that_is_elsewhere() -> None:
    alone = read_keys(keys().signing_chain_pem() + keys().roots_pem())
    alone.check(NOW)
    assert (alone.key, alone.algorithm, alone.is_ours) == (None, "ed25519", False)
    assert read_keys(alone.to_pem()) == alone
    with pytest.raises(CredentialsError, match="SCHNELL_CREDENTIALS_SIGNING_URL"):
        alone.key_pem()


def test_keys_that_are_no_pair_are_named() -> None:
    other = make_keys("Another", NOW)
    mixed = SigningKeys(other.key, keys().chain)
    with pytest.raises(CredentialsError, match="not that of the first certificate"):
        mixed.check(NOW)


def test_a_chain_of_another_root_is_named() -> None:
    other = make_keys("Test Studio", NOW)  # the same names, another root
    with pytest.raises(CredentialsError, match="was not issued by"):
        SigningKeys(keys().key, (keys().leaf, other.chain[1])).check(NOW)


@pytest.mark.parametrize(("days", "complaint"), [(4000, "expired on"), (-2, "is valid from")])
def test_certificates_of_another_time_are_named(days: int, complaint: str) -> None:
    with pytest.raises(CredentialsError, match=complaint):
        keys().check(NOW + timedelta(days=days))


def test_a_root_alone_does_not_sign_pictures() -> None:
    root = SigningKeys(keys().root_key or keys().key, keys().chain[1:])
    with pytest.raises(CredentialsError):
        CredentialsSigner.checked(root)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    load_or_make_keys(tmp_path, "Test Studio", NOW)
    assert stat.S_IMODE(keys_path(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(keys_path(tmp_path).parent.stat().st_mode) == 0o700
    assert [each.name for each in keys_path(tmp_path).parent.iterdir()] == ["keys.pem"]


def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    load_or_make_keys(tmp_path, "Test Studio", NOW)
    keys_path(tmp_path).write_text("broken")
    with pytest.raises(CredentialsError, match=str(keys_path(tmp_path))):
        load_or_make_keys(tmp_path, "Test Studio", NOW)
    assert keys_path(tmp_path).read_text() == "broken"


def test_a_half_written_draft_of_a_killed_process_does_no_harm(tmp_path: Path) -> None:
    keys_path(tmp_path).parent.mkdir(parents=True)
    keys_path(tmp_path).with_suffix(".dead").write_text("-----BEGIN PRIV")
    load_or_make_keys(tmp_path, "Test Studio", NOW).check(datetime.now(UTC))


def test_kept_keys_replace_those_before(tmp_path: Path) -> None:
    load_or_make_keys(tmp_path, "Test Studio", NOW)
    keep_keys(tmp_path, keys())
    found = find_keys(tmp_path)
    assert found is not None
    assert found.leaf == keys().leaf


def _leaf_made_in(folder: Path) -> int:
    return load_or_make_keys(folder, "Test Studio", NOW).leaf.serial_number


def test_processes_that_start_at_once_get_one_pair(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as processes:
        made = list(processes.map(_leaf_made_in, [tmp_path] * 12))
    assert len(set(made)) == 1
