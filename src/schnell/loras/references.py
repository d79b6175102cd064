"""References: what a caller writes to name a LoRA, parsed without calling the network."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from schnell.errors import AdapterError, FieldProblem, InvalidFieldError, LoraDownloadError, LoraSourceError

#: Presigned addresses carry their signature, and those of S3 a session token, too.
MAX_REFERENCE_LENGTH: Final = 4096
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
# begins with a letter or a digit: it becomes a part of a URL, in which `..` would lead elsewhere
_OWNER: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})"
_REPOSITORY: Final = re.compile(rf"({_OWNER})/({_OWNER})(?:/([A-Za-z0-9._-]{{1,100}}))?")
_REPLICATE_VERSION: Final = re.compile(r"[0-9a-f]{64}")
_HUB_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_CIVITAI_HOSTS: Final = frozenset({"civitai.com", "www.civitai.com"})
_REPLICATE_HOSTS: Final = frozenset({"replicate.com", "www.replicate.com"})
_FORMS: Final = (
    "write a library name, owner/name, owner/name/version, huggingface.co/owner/name[/file.safetensors], "
    "civitai.com/models/ID, or an https URL of a .safetensors file or of Replicate's weights tar"
)


@dataclass(frozen=True, slots=True)
class LibraryName:
    """A LoRA of the library, by its name in lower case."""

    name: str


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of the Hugging Face repository `owner/name`; without `file`, the one LoRA in it.

    Without `revision` (a branch, tag or commit), that of the main branch.
    """

    repository: str
    file: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class CivitaiModel:
    """A model on Civitai, by number; without `version`, its newest version."""

    model: int
    version: int | None = None


@dataclass(frozen=True, slots=True)
class ReplicateModel:
    """The weights of a model `owner/name` that was trained on Replicate; without `version`, its newest version."""

    model: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class DirectUrl:
    """A file at an https URL."""

    url: str


Reference: TypeAlias = LibraryName | HubFile | CivitaiModel | ReplicateModel | DirectUrl


def parse_reference(text: str, field: str = "lora_weights") -> Reference:
    """What a reference means by its form. `owner/name` is a repository of Hugging Face.

    Raises:
        InvalidFieldError: it has no known form; `field` is the field's name in the error.
    """
    text = text.strip()
    if not text or len(text) > MAX_REFERENCE_LENGTH or not text.isprintable():
        raise _refuse(field, f"must be 1-{MAX_REFERENCE_LENGTH} printable characters")
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() != "https":
        raise _refuse(field, f"only https addresses are fetched, not {scheme[:20]}://")
    url = text if separator else f"https://{text}"
    # `huggingface.co/owner/name` is a URL without its scheme; `owner/name` looks like one, of a host called `owner`
    host = text.partition("/")[0].lower()
    if separator or host in _HUB_HOSTS | _CIVITAI_HOSTS | _REPLICATE_HOSTS:
        return _parse_url(url, field)
    if _NAME.fullmatch(text.lower()):
        return LibraryName(text.lower())
    return _parse_repository(text, field)


def suggest_name(text: str) -> str:
    """A library name made from that of a file or a model: what it may not hold becomes a dash, accents are dropped."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:100] or "lora"


def is_library_name(text: str) -> bool:
    """Whether a LoRA in the library may be called this: 1-100 lower-case letters, digits, `.`, `_` and `-`.

    The first is a letter or a digit.
    """
    return _NAME.fullmatch(text) is not None


@contextmanager
def naming(field: str, name: str) -> Iterator[None]:
    """Put the request's field and the LoRA's name before what is wrong with it."""
    try:
        yield
    except (AdapterError, LoraSourceError, LoraDownloadError) as error:
        raise type(error)(f"{field} {name[:100]!r}: {error.message}") from error


def check_name(name: str) -> str:
    """The name in the form that the library keeps: lower case, spaces as dashes.

    Raises:
        InvalidFieldError: it holds other characters than letters, digits, `.`, `_` and `-`, or more than 100.
    """
    tidy = "-".join(name.lower().split())
    if not is_library_name(tidy):
        raise InvalidFieldError(
            FieldProblem("name", "must be 1-100 letters, digits, '.', '_' or '-', and begin with a letter or a digit")
        )
    return tidy


def show_reference(text: str) -> str:
    """A reference as it may be shown, stored and logged: without the query, user and fragment of an address.

    Those are where secrets stand: Civitai's `?token=`, the signature of a presigned link. The number of a Civitai
    version stays, as another version is another LoRA.
    """
    text = text.strip()
    head, separator, rest = text.partition("://")
    if not separator and text.partition("/")[0].lower() not in _HUB_HOSTS | _CIVITAI_HOSTS | _REPLICATE_HOSTS:
        return text
    try:
        parts = urlsplit(text if separator else f"https://{text}")
        version = (parse_qs(parts.query).get("modelVersionId") or [""])[0] if parts.hostname in _CIVITAI_HOSTS else ""
    except ValueError:
        # no address that can be read, and yet a secret may stand in it
        bare = re.split(r"[?#]", rest, maxsplit=1)[0].rpartition("@")[2]
        return f"{head}://{bare}" if separator else re.split(r"[?#]", head, maxsplit=1)[0]
    query = f"modelVersionId={version}" if _is_number(version) else ""
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
    return shown if separator else shown.removeprefix("https://")


def key_of(reference: Reference) -> str:
    """What a reference's download is stored under: its parts, an address without its secrets but with their hash."""
    if isinstance(reference, DirectUrl) and (shown := show_reference(reference.url)) != reference.url:
        # who names the same file with another token has not shown that they may have it
        return f"{DirectUrl(shown[:400])!r} {sha256(reference.url.encode()).hexdigest()}"
    return repr(reference)


def _parse_repository(text: str, field: str) -> Reference:
    match = _REPOSITORY.fullmatch(text)
    if match is None:
        raise _refuse(field, f"{show_reference(text)[:80]!r} names no LoRA; {_FORMS}")
    repository, version = f"{match[1]}/{match[2]}", match[3]
    if version and _REPLICATE_VERSION.fullmatch(version):
        return ReplicateModel(repository, version)
    if version and version.endswith(".safetensors"):
        return HubFile(repository, file=version)
    return HubFile(repository, revision=version)


def _parse_url(url: str, field: str) -> Reference:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise _refuse(field, "is not an address that can be read") from None
    if not host or parts.username is not None or parts.password is not None:
        raise _refuse(field, "must be an https address without a user name or password")
    steps = [unquote(step) for step in parts.path.split("/") if step]
    # with a port it is some other server, which happens to have the name
    if port is None and host in _HUB_HOSTS:
        return _parse_hub(steps, field)
    if port is None and host in _CIVITAI_HOSTS:
        return _parse_civitai(steps, parts.query, url, field)
    if port is None and host in _REPLICATE_HOSTS:
        return _parse_replicate(steps, field)
    if not parts.path.lower().endswith((".safetensors", ".tar", ".tar.gz", ".tgz")):
        raise _refuse(field, f"must end in .safetensors or .tar; {_FORMS}")
    return DirectUrl(parts._replace(fragment="").geturl())


def _parse_hub(steps: list[str], field: str) -> Reference:
    if len(steps) < 2 or ".." in steps or not _REPOSITORY.fullmatch("/".join(steps[:2])):
        raise _refuse(field, "must be huggingface.co/owner/name, with or without a file")
    repository, rest = "/".join(steps[:2]), steps[2:]
    revision = None
    if len(rest) > 1 and rest[0] in {"blob", "resolve", "tree"}:
        revision, rest = rest[1], rest[2:]
    file = "/".join(rest) or None
    if file and not file.endswith((".safetensors", ".tar")):
        raise _refuse(field, "must name a .safetensors file of the repository")
    return HubFile(repository, file, None if revision == "main" else revision)


def _parse_civitai(steps: list[str], query: str, url: str, field: str) -> Reference:
    if steps[:3] == ["api", "download", "models"]:
        return DirectUrl(url)
    if len(steps) < 2 or steps[0] != "models" or not _is_number(steps[1]):
        raise _refuse(field, "must be civitai.com/models/ID")
    version = (parse_qs(query).get("modelVersionId") or [""])[0]
    return CivitaiModel(int(steps[1]), int(version) if _is_number(version) else None)


def _parse_replicate(steps: list[str], field: str) -> Reference:
    if len(steps) < 2 or not _REPOSITORY.fullmatch("/".join(steps[:2])):
        raise _refuse(field, "must be replicate.com/owner/name, with or without /versions/VERSION")
    version = steps[3] if len(steps) > 3 and steps[2] == "versions" else None
    if version is not None and not _REPLICATE_VERSION.fullmatch(version):
        raise _refuse(field, "must name the version by its 64 hexadecimal digits")
    return ReplicateModel("/".join(steps[:2]), version)


def _is_number(text: str) -> bool:
    # `isdigit` alone is true of digits that `int` cannot read, such as superscripts
    return text.isascii() and text.isdigit() and len(text) < 13


def _refuse(field: str, message: str) -> InvalidFieldError:
    return InvalidFieldError(FieldProblem(field, message))
