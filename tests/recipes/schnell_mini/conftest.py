import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from schnell_mini import lora_icons
from schnell_mini.packages import Package


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small packages of the same form as the real ones, in the place where fetched archives lie."""
    names = json.dumps([{"label": "Red Apple", "hexcode": "1F34E", "tags": ["fruit"], "group": 4}])
    picture = io.BytesIO()
    Image.new("RGBA", (200, 256), (255, 0, 0, 255)).save(picture, "WEBP", lossless=True)
    files = {
        "NAMES": {"en/data.json": names.encode()},
        "PICTURES": {"assets/1f34e.webp": picture.getvalue(), "assets/1f9e6.webp": picture.getvalue()},
    }
    archives = tmp_path / "packages" / "archives"
    archives.mkdir(parents=True)
    for name, content in files.items():
        sha256 = _pack(archives / f"{name}.tgz", content)
        monkeypatch.setattr(lora_icons, name, Package("npm", name.lower(), "1.0.0", sha256, "MIT"))
    return tmp_path / "packages"


def _pack(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()
