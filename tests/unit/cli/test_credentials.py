"""`schnell credentials` and `schnell verify` on the command line."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from proof import NOW, keys, landscape, proven
from schnell.errors import CredentialsError, InvalidFieldError
from schnell.provenance.key_files import keys_path
from schnell.provenance.keys import make_keys


def test_the_first_look_makes_a_key_and_the_next_shows_the_same(run: Any) -> None:
    shown = run("credentials", "show", "--json")
    assert (shown["algorithm"], shown["made_by"]) == ("ed25519", "this server")
    assert run("credentials", "show", "--json") == shown


def test_a_new_key_stands_under_the_same_root(run: Any, tmp_path: Path) -> None:
    before = run("credentials", "show", "--json")
    old = keys_path(tmp_path / "data").read_text()
    run("credentials", "rotate")
    assert run("credentials", "show", "--json")["roots"] == before["roots"]
    assert keys_path(tmp_path / "data").read_text() != old


def test_keys_of_ones_own_are_signed_with_and_are_not_renewed(run: Any, tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_text("".join(keys().to_pem().partition("-----BEGIN CERTIFICATE")[1:]))
    (tmp_path / "key.pem").write_text(keys().key_pem())
    run("credentials", "import", "chain.pem", "key.pem")
    shown = run("credentials", "show", "--json")
    assert (shown["signer"], shown["made_by"]) == ("CN=Test Studio signer,O=Test Studio", "import")
    with pytest.raises(CredentialsError, match="import"):
        run("credentials", "rotate")


@pytest.mark.parametrize(
    ("pem", "complaint"),
    [
        ("nothing", "no certificate"),
        (keys().signing_chain_pem(), "the private key is not here"),
        (make_keys("Old", NOW.replace(year=2010)).to_pem(), "expired on"),
        (make_keys("Mixed", NOW).key_pem() + keys().roots_pem(), "not that of the first certificate"),
    ],
)
def test_keys_that_cannot_sign_are_named_and_nothing_changes(
    run: Any, tmp_path: Path, pem: str, complaint: str
) -> None:
    before = run("credentials", "show", "--json")
    (tmp_path / "keys.pem").write_text(pem)
    with pytest.raises(CredentialsError, match=complaint):
        run("credentials", "import", "keys.pem")
    assert run("credentials", "show", "--json") == before


def test_an_exported_root_makes_anothers_pictures_trusted(run: Any, tmp_path: Path) -> None:
    (tmp_path / "picture.webp").write_bytes(proven())
    (tmp_path / "root.pem").write_text(keys().roots_pem())
    assert run("verify", "picture.webp", "--json")["credentials"]["state"] == "valid"
    assert run("verify", "picture.webp", "--trust", "root.pem", "--json")["credentials"]["state"] == "trusted"


def test_an_own_picture_is_no_strangers(run: Any, tmp_path: Path) -> None:
    (tmp_path / "keys.pem").write_text(keys().to_pem())
    run("credentials", "import", "keys.pem")
    exported = run("credentials", "export-root").stdout
    assert exported == keys().roots_pem()
    (tmp_path / "picture.webp").write_bytes(proven())
    assert run("verify", "picture.webp", "--json")["credentials"]["state"] == "trusted"


def test_each_file_has_its_lines_and_one_that_is_none_is_told_by_the_exit_code(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "ours.webp").write_bytes(proven())
    file = io.BytesIO()
    landscape(256).save(file, "JPEG")
    (tmp_path / "plain.jpg").write_bytes(file.getvalue())
    done = invoke("verify", "ours.webp", "plain.jpg")
    assert done.exit_code == 0
    assert "signed by Test Studio signer, who is unknown here" in done.stdout
    assert "agrees with the mark" in done.stdout
    assert "= nothing found, which proves nothing" in done.stdout
    (tmp_path / "none.jpg").write_text("hello")
    done = invoke("verify", "ours.webp", "none.jpg")
    assert done.exit_code == 1
    assert "this is not a" in done.stdout


def test_a_file_that_is_not_there_is_said_not_to_be_there(invoke: Any) -> None:
    done = invoke("verify", "missing.webp")
    assert done.exit_code == 1
    assert "there is no such file" in done.stdout
    assert "Errno" not in done.stdout


def test_a_root_that_is_none_is_refused(run: Any, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(proven("png"))
    with pytest.raises(InvalidFieldError, match="trust"):
        run("verify", "picture.png", "--trust", "picture.png")
    assert Image.open(tmp_path / "picture.png").size == (512, 512)
