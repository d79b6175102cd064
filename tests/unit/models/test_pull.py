"""Pulling from a hub-shaped server on this machine: the real client, real HTTP."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from schnell.errors import ModelDownloadError
from schnell.models.catalogue import CatalogueEntry, catalogue_entry
from schnell.models.folder import open_model_folder
from schnell.models.pull import partial_folder, pull_model

COMMIT = "1" * 40


@dataclass
class Hub:
    """A hub that serves one folder as `black-forest-labs/FLUX.1-schnell`."""

    folder: Path
    is_gated: bool = False
    token: str | None = None
    damaged: str = ""
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def files(self) -> list[Path]:
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]


class HubHandler(BaseHTTPRequestHandler):
    hub: Hub

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.is_gated and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self.answer(401, b"gated", {"X-Error-Code": "GatedRepo"})
        elif "/tree/" in self.path:
            self.answer(200, json.dumps(self.tree()).encode(), {"content-type": "application/json"})
        elif self.path.startswith("/api/models/"):
            self.answer(200, json.dumps(self.listing()).encode(), {"content-type": "application/json"})
        else:
            self.send_file(self.hub.folder / self.path.partition(f"/resolve/{COMMIT}/")[2])

    def listing(self) -> dict[str, object]:
        names = [{"rfilename": str(path.relative_to(self.hub.folder))} for path in self.hub.files()]
        return {"id": "black-forest-labs/FLUX.1-schnell", "sha": COMMIT, "siblings": names}

    def tree(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": str(path.relative_to(self.hub.folder)),
                "size": path.stat().st_size,
                "oid": self.hash_of(path.read_bytes()),
            }
            for path in self.hub.files()
        ]

    def hash_of(self, data: bytes) -> str:
        """git's hash of a file."""
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def send_file(self, path: Path) -> None:
        data = path.read_bytes()
        if path.name == self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"etag": f'"{hashlib.sha256(data).hexdigest()}"', "x-repo-commit": COMMIT}
        start = int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206 if start else 200, data[start:], headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(random_flux: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("SCHNELL_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub = Hub(random_flux)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()


@pytest.fixture
def entry() -> CatalogueEntry:
    return catalogue_entry("flux-schnell")


def test_a_pulled_model_is_a_model_folder(hub: Hub, entry: CatalogueEntry) -> None:
    path = pull_model(entry, endpoint=hub.url)
    assert path == entry.path
    assert open_model_folder(path).transformer["num_layers"] == 1


def test_files_that_are_complete_are_not_fetched_again(hub: Hub, entry: CatalogueEntry) -> None:
    pull_model(entry, endpoint=hub.url)
    hub.requests.clear()
    pull_model(entry, endpoint=hub.url)
    assert not [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


def test_a_refusal_names_the_page_to_accept_the_licence_on(hub: Hub, entry: CatalogueEntry) -> None:
    hub.is_gated = True
    with pytest.raises(ModelDownloadError, match=r"huggingface.co/black-forest-labs/FLUX.1-schnell.*HF_TOKEN"):
        pull_model(entry, endpoint=hub.url)
    assert not entry.path.exists()


def test_a_token_opens_a_gated_model(hub: Hub, entry: CatalogueEntry) -> None:
    hub.is_gated, hub.token = True, "hf_secret"
    assert (pull_model(entry, endpoint=hub.url, token="hf_secret") / "model_index.json").is_file()


def test_a_hub_that_is_not_there_says_how_to_go_on(hub: Hub, entry: CatalogueEntry) -> None:
    with pytest.raises(ModelDownloadError, match="same command to resume"):
        pull_model(entry, endpoint="http://127.0.0.1:9")


def test_the_embedded_model_needs_no_download(entry: CatalogueEntry) -> None:
    embedded = replace(entry, name="schnell-mini", repository=None)
    assert (pull_model(embedded, endpoint="http://127.0.0.1:9") / "model_index.json").is_file()


def test_a_file_that_arrives_damaged_is_removed_and_fetched_again(hub: Hub, entry: CatalogueEntry) -> None:
    hub.damaged = "model_index.json"
    with pytest.raises(ModelDownloadError, match=r"model_index.json arrived damaged.*same command"):
        pull_model(entry, endpoint=hub.url)
    assert not entry.is_here
    hub.damaged = ""
    assert open_model_folder(pull_model(entry, endpoint=hub.url)).transformer["num_layers"] == 1


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    hub: Hub, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30 + 1000))
    with pytest.raises(ModelDownloadError, match=r"GB more, and 1\.1 GB are free.*SCHNELL_MODELS_DIR"):
        pull_model(entry, endpoint=hub.url)
    assert not [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


def test_it_says_what_it_takes(hub: Hub, entry: CatalogueEntry) -> None:
    said: list[str] = []
    pull_model(entry, endpoint=hub.url, say=said.append)
    assert [line.partition(" GB to fetch")[0] for line in said] == [
        "0.0",
        "checking every file against the hub's hashes",
    ]


def test_the_parts_around_a_transformer_go_on_as_a_whole_pull(hub: Hub, entry: CatalogueEntry) -> None:
    parts = pull_model(entry, endpoint=hub.url, without_transformer=True)
    assert parts == partial_folder(entry.path)
    assert sorted(path.name for path in parts.iterdir() if path.name[0] != ".") == [
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "vae",
    ]
    assert not entry.is_here
    hub.requests.clear()
    assert pull_model(entry, endpoint=hub.url) == entry.path
    fetched = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert all("/transformer/" in request or "/model_index.json" in request for request in fetched)
    # what was added in between still finds its parts
    assert (parts / "vae" / "config.json").is_file()
