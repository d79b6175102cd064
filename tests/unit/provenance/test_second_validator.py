"""A validator that shares no code with c2pa-python agrees on every format."""

from pathlib import Path
from typing import Any

import pytest
from encypher_c2pa import verify

from proof import keys, proven
from schnell.spec import OutputFormat

FORMATS: tuple[OutputFormat, ...] = ("webp", "jpeg", "png")


@pytest.fixture(autouse=True)
def no_telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # it keeps the answer to its question in the home folder
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def judged(folder: Path, data: bytes, file_format: OutputFormat, roots: str | None = None) -> dict[str, Any]:
    path = folder / f"picture.{file_format}"
    path.write_bytes(data)
    return dict(verify(path, trust_pem=roots, telemetry=False, online=False))


@pytest.mark.parametrize("file_format", FORMATS)
def test_it_finds_credentials_intact(file_format: OutputFormat, tmp_path: Path) -> None:
    found = judged(tmp_path, proven(file_format), file_format)
    assert (found["integrity"], found["signature"], found["hard_binding"]) == ("valid", "valid", "match")


@pytest.mark.parametrize("file_format", FORMATS)
def test_it_trusts_the_signer_with_the_root(file_format: OutputFormat, tmp_path: Path) -> None:
    found = judged(tmp_path, proven(file_format), file_format, keys().roots_pem())
    assert found["validation_state"] == "Trusted"


@pytest.mark.parametrize("file_format", FORMATS)
def test_it_finds_a_flipped_byte(file_format: OutputFormat, tmp_path: Path) -> None:
    broken = bytearray(proven(file_format))
    # in WebP the credentials come last, in the others first
    broken[len(broken) // 3 if file_format == "webp" else -100] ^= 1
    assert judged(tmp_path, bytes(broken), file_format)["integrity"] != "valid"
