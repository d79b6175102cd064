"""The weights tar of Replicate's FLUX trainer: one LoRA file among captions and settings.

A tar from outside may hold paths that lead elsewhere, links, and more data than its size lets one think. So members are
never extracted by name: the one LoRA is copied to a path of our choosing, in pieces, after the whole list of members
was checked. Sizes are bounded before and while reading, so a compressed bomb stops early.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast

from schnell.adapters.provenance import MAX_CONFIG_BYTES, parse_peft_config
from schnell.adapters.tensors import shorten
from schnell.errors import AdapterError

#: A trainer's tar has a handful of members; the list is read whole before anything else, so its length is bounded.
_MAX_MEMBERS: Final = 10_000
#: Bytes read at once, and so held in memory.
_PIECE: Final = 2**20


@dataclass(frozen=True, slots=True)
class ArchiveContents:
    """The LoRA's name in the archive, and what lay beside it: PEFT's configuration, the trainer's trigger word."""

    member: str
    peft_config: dict[str, Any] | None
    trigger_word: str | None


def is_archive(path: Path) -> bool:
    """Whether the file is a tar, plain or gzipped, by its first bytes.

    Raises:
        AdapterError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            opening = file.read(512)
    except OSError as error:
        raise AdapterError(f"the file cannot be read: {error.strerror or error}") from error
    return opening[:2] == b"\x1f\x8b" or opening[257:262] == b"ustar"


def extract_lora(archive: Path, target: Path, max_bytes: int) -> ArchiveContents:
    """Copy the archive's one LoRA to `target` (a new file).

    Raises:
        AdapterError: a member that leaves its folder, a link or device, more than `max_bytes` unpacked, no LoRA or
            several, or an archive that is truncated.
    """
    with _open_tar(archive, max_bytes) as tar:
        members = [_check_member(member) for member in _members(tar)]
        lora = _choose(members)
        _copy(tar, lora, target)
        folder = PurePosixPath(lora.name).parent
        config = _small_file(tar, members, folder / "adapter_config.json")
        settings = _small_file(tar, members, folder / "config.yaml")
    return ArchiveContents(lora.name, _peft_config(config), _trigger_word(settings))


class _BoundedReader(io.RawIOBase):
    """Refuses to read further than `limit` bytes of the unpacked archive, or more than a piece at once.

    tarfile believes what headers say: it would read a long name of any size into memory, and seek over a member by
    unpacking all of it.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # tarfile seeks from the start only
        if whence != io.SEEK_SET or offset > self._limit:
            raise AdapterError(f"the archive unpacks to more than {self._limit:,} bytes")
        return self._file.seek(offset)

    def read(self, size: int = -1) -> bytes:
        # a piece more than the limit, for the padding that ends a tar
        if size < 0 or size > _PIECE or self._file.tell() + size > self._limit + _PIECE:
            raise AdapterError(f"the archive holds a header, or unpacks to a size, beyond {self._limit:,} bytes")
        return self._file.read(size)


@contextmanager
def _open_tar(archive: Path, max_bytes: int) -> Iterator[tarfile.TarFile]:
    with archive.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if compressed else raw
        try:
            # "r:", plain tar only: tarfile must not unpack anything by itself, past the reader that counts
            with tarfile.open(fileobj=cast("BinaryIO", _BoundedReader(plain, max_bytes)), mode="r:") as tar:
                yield tar
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, OSError, ValueError) as error:
            raise AdapterError("the tar archive is truncated or damaged") from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(tar):
        if count >= _MAX_MEMBERS:
            raise AdapterError(f"the archive has more than {_MAX_MEMBERS:,} members")
        yield member


def _check_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    path = PurePosixPath(member.name)
    shown = shorten(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise AdapterError(f"the archive's member {shown} leads out of its folder")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise AdapterError(
            f"the archive's member {shown} is a link, a device or a sparse file; only plain files are read"
        )
    return member


def _choose(members: list[tarfile.TarInfo]) -> tarfile.TarInfo:
    loras = [member for member in members if member.isreg() and member.name.endswith(".safetensors")]
    # Replicate's trainer calls its result so, beside checkpoints that it may have saved on the way
    if len(loras) > 1:
        loras = [member for member in loras if PurePosixPath(member.name).name == "lora.safetensors"] or loras
    if not loras:
        raise AdapterError("the archive holds no .safetensors file")
    if len(loras) > 1:
        names = ", ".join(shorten(member.name, 40) for member in loras[:5])
        raise AdapterError(f"the archive holds {len(loras)} LoRA files ({names}); give the one you mean")
    return loras[0]


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise AdapterError(f"the archive's member {shorten(member.name)} cannot be read")
    remaining = member.size
    # "x": never over a file that is there
    with target.open("xb") as file:
        while remaining:
            piece = source.read(min(_PIECE, remaining))
            if not piece:
                raise AdapterError("the tar archive is truncated")
            file.write(piece)
            remaining -= len(piece)


def _small_file(tar: tarfile.TarFile, members: list[tarfile.TarInfo], path: PurePosixPath) -> bytes | None:
    for member in members:
        if PurePosixPath(member.name) == path and member.isreg() and member.size <= MAX_CONFIG_BYTES:
            file = tar.extractfile(member)
            return file.read(MAX_CONFIG_BYTES) if file else None
    return None


def _peft_config(text: bytes | None) -> dict[str, Any] | None:
    return None if text is None else parse_peft_config(text)


def _trigger_word(settings: bytes | None) -> str | None:
    if settings is None:
        return None
    # one plain line of a YAML file that we need nothing else of
    match = re.search(rb"^\s*trigger_word:\s*[\"']?([^\"'\r\n#]{1,80})", settings, re.MULTILINE)
    return shorten(match[1].decode("utf-8", "replace").strip()) if match else None
