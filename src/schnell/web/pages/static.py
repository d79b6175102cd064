"""Scripts, styles and fonts from inside the package.

Their URLs hold a digest of the contents, so browsers may cache them for ever. What a page needs before it can be
painted may stand in the page itself; the Content-Security-Policy then names it by its hash.
"""

import gzip
import mimetypes
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.errors import NotFoundError

router = APIRouter()
_FOLDER: Final = Path(__file__).with_name("static")
_COMPRESSED: Final = {".js", ".css", ".svg"}
_FOR_EVER: Final = "public, max-age=31536000, immutable"
#: An address of another file in a stylesheet.
_URL: Final = re.compile(r'url\("([\w/.-]+)"\)')


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file, and its gzip form for text."""

    data: bytes
    media_type: str
    compressed: bytes | None


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A file's text, and what stands for it in a Content-Security-Policy, which refuses any other text."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """Every file by its path; `digest` changes when the contents of any of them do."""

    files: Mapping[str, StaticFile]
    digest: str

    def url(self, name: str) -> str:
        """The URL of a file.

        Raises:
            KeyError: there is no such file (a template has a wrong name).
        """
        self.files[name]  # raises here, and not as a 404 in a browser
        return f"/static/{self.digest}/{name}"

    def inline(self, name: str) -> "InlineFile":
        """A script or stylesheet for a page to hold, with the addresses in a stylesheet made whole."""
        text = _URL.sub(lambda found: f'url("{self.url(found[1])}")', self.files[name].data.decode())
        digest = b64encode(sha256(text.encode()).digest()).decode()
        return InlineFile(text, f"'sha256-{digest}'")


def load_static_files() -> StaticFiles:
    """Read every file of the package's `static` folder, and compress those that are text."""
    paths = sorted(path for path in _FOLDER.rglob("*") if path.is_file())
    files = {path.relative_to(_FOLDER).as_posix(): _load(path) for path in paths}
    digest = sha256(b"".join(file.data for file in files.values())).hexdigest()[:12]
    return StaticFiles(files, digest)


@router.api_route("/static/{digest}/{name:path}", methods=["GET", "HEAD"])
async def static_file(request: Request, digest: str, name: str) -> Response:
    """One file. Under an old digest it is the present file, which browsers then ask about each time (`no-cache`)."""
    known: StaticFiles = request.app.state.site.static
    file = known.files.get(name)
    if file is None:
        raise NotFoundError("this server has no such file")
    headers = {"Cache-Control": _FOR_EVER if digest == known.digest else "no-cache", "Vary": "Accept-Encoding"}
    if file.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, media_type=file.media_type, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    """The icon at the path that browsers try when a page names none."""
    file = request.app.state.site.static.files["icon.svg"]
    return Response(file.data, media_type=file.media_type, headers={"Cache-Control": "public, max-age=86400"})


def _load(path: Path) -> StaticFile:
    data = path.read_bytes()
    media_type = {".js": "text/javascript", ".woff2": "font/woff2"}.get(path.suffix)
    media_type = media_type or mimetypes.guess_type(path.name)[0] or "text/plain"
    compressed = gzip.compress(data, 6, mtime=0) if path.suffix in _COMPRESSED else None
    return StaticFile(data, media_type, compressed)
