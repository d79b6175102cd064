"""A LoRA library for tests, and the hub that it fetches from."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mini_loras import lora_bytes, write_lora
from schnell.loras.library import LoraLibrary
from schnell.loras.repository import Labels
from schnell.spec import LoraRef
from tls_server import Reply, Route, TlsServer

TEAM = "team-1"
MakeLibrary = Callable[..., LoraLibrary]


def bundle(folder: Path, name: str, **card: Any) -> None:
    folder.mkdir(exist_ok=True)
    write_lora(folder / f"{name}.safetensors", seed=99)
    (folder / f"{name}.json").write_text(json.dumps(card))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def resolve(library: LoraLibrary, *references: str, team: str = TEAM) -> list[str]:
    return [use.sha256 for use in await library.resolve([LoraRef(each) for each in references], team)]


async def add(library: LoraLibrary, name: str, seed: int, owner: str = TEAM) -> str:
    file = io.BytesIO(lora_bytes(seed))
    return (await library.add_file(file, owner=owner, labels=Labels(name), file_name="f", created_by="me")).sha256


def serve_hub(site: TlsServer, repository: str, files: dict[str, bytes], card: dict[str, Any] | None = None) -> None:
    listing = [
        {"rfilename": name, "size": len(data), "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}
        for name, data in files.items()
    ]
    site.serve_json(f"/api/models/{repository}", json.dumps({"siblings": listing, "cardData": card or {}}))
    for name, data in files.items():
        site.serve(f"/{repository}/resolve/main/{name}", data)


def serve_gated(site: TlsServer, repository: str, data: bytes, token: str) -> None:
    """A hub repository that only the holder of a token sees."""
    serve_hub(site, repository, {"lora.safetensors": data})
    for path in (f"/api/models/{repository}", f"/{repository}/resolve/main/lora.safetensors"):
        site.routes[path] = _gated(site.routes[path], token)


def _gated(shown: Route, token: str) -> Route:
    return lambda asked: shown(asked) if asked.headers.get("authorization") == f"Bearer {token}" else Reply(401)
