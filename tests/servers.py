"""Servers that run in the tests' own process."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from databases import migrated_sqlite
from fakes import FakeRunner
from schnell.accounts.identity import Scope
from schnell.accounts.keys import create_key
from schnell.accounts.teams import create_team, list_members
from schnell.bootstrap import build_app
from schnell.settings import Settings
from schnell.side_processes import SideProcesses
from schnell.web import pages
from schnell.web.pages.documents import find_documents
from schnell.web.services import Services, services_of_app

KEY = "test-key-of-the-first-team"
BODY: dict[str, Any] = {
    "type": "IMAGE_GENERATOR",
    "model": "black-forest-labs/flux-schnell-lora",
    "promptObject": {"prompt": "a red apple", "megapixels": "0.25"},
}

# what every server reads of the package itself: once for all servers of a process
_READERS = {name: cache(getattr(pages, name)) for name in ("load_static_files", "load_languages", "load_documents")}
for _name, _read in _READERS.items():
    setattr(pages, _name, _read)


def read_package() -> None:
    """Read it now, and not at the start of the first server."""
    _READERS["load_static_files"]()
    _READERS["load_languages"]()
    _READERS["load_documents"](find_documents())


@dataclass
class Server:
    """An app that runs in this process, over a real database and real files, with a fake engine."""

    app: FastAPI
    client: httpx.AsyncClient
    runner: FakeRunner

    @property
    def services(self) -> Services:
        return services_of_app(self.app)

    async def draw(self, **prompt_object: Any) -> httpx.Response:
        return await self.client.post("/api/features", json=body_with(**prompt_object))


def body_with(**prompt_object: Any) -> dict[str, Any]:
    return BODY | {"promptObject": BODY["promptObject"] | prompt_object}


async def key_for(server: Server, team: str, *scopes: Scope, **options: Any) -> dict[str, str]:
    """The header of a new team's key; `options` are the team's."""
    async with server.services.database.write() as connection:
        made = await create_team(connection, team, **options)
        member = (await list_members(connection, made.id))[0]
        key = await create_key(connection, made.id, member.user_id, scopes=scopes or ("generate", "read"))
    return {"API-KEY": key.secret}


@asynccontextmanager
async def run_server(folder: Path, runner: FakeRunner | None = None, **settings: Any) -> AsyncIterator[Server]:
    """A server on `folder`. A new one has its tables already: servers in processes of their own make them."""
    runner = runner or FakeRunner()
    if "database_url" not in settings:
        _add_database(folder / "schnell.db")
    given: dict[str, Any] = {"data_dir": folder, "bootstrap_key": KEY, "drain_seconds": 5} | settings
    app = build_app(Settings(**given), runner, SideProcesses())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers={"API-KEY": KEY}) as client,
    ):
        yield Server(app, client, runner)


def _add_database(file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(migrated_sqlite(), file)
