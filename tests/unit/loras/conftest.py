import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from databases import database, migrated_sqlite, migrated_url
from lora_libraries import MakeLibrary
from schnell.adapters import read_model_shape
from schnell.database.session import Database
from schnell.loras.bundled import read_bundled
from schnell.loras.files import AdapterFiles
from schnell.loras.library import LoraLibrary
from schnell.loras.remote import RemoteLoras
from schnell.loras.sources import SourceSites
from schnell.loras.tokens import SourceTokens
from schnell.models.folder import embedded_home
from schnell.outbound.addresses import AddressPolicy
from schnell.outbound.downloads import Downloader
from tls_server import TlsServer

__all__ = ["database", "migrated_url"]


@pytest.fixture
async def library_database(tmp_path: Path) -> AsyncIterator[Database]:
    """A SQLite file for the library; its statements are tested on both databases."""
    found = Database(f"sqlite:{shutil.copy(migrated_sqlite(), tmp_path / 'schnell.db')}")
    yield found
    await found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where converted files lie."""
    return tmp_path / "adapters"


@pytest.fixture
def sites(site: TlsServer) -> SourceSites:
    return SourceSites(hub=site.url(), civitai=site.url("/civitai"), replicate=site.url("/replicate"))


@pytest.fixture
def make(library_database: Database, folder: Path, tmp_path: Path, site: TlsServer, sites: SourceSites) -> MakeLibrary:
    shape = read_model_shape(embedded_home() / "schnell-mini")

    def build(*, offline: bool = False, per_team: int = 200, cache_bytes: int = 10**9) -> LoraLibrary:
        policy = AddressPolicy(private_networks=("127.0.0.0/8", "::1/128"))
        authorities = site.client_context()
        downloader = Downloader(tmp_path / "downloads", policy, offline=offline, authorities=authorities)
        files = AdapterFiles(folder, shape, 10**7)
        tokens = SourceTokens(library_database, ["secret"])
        remote = RemoteLoras(library_database, files, downloader, sites=sites, tokens=tokens, cache_bytes=cache_bytes)
        bundled = read_bundled(tmp_path / "bundled")
        return LoraLibrary(library_database, files, remote, bundled=bundled, per_team=per_team)

    return build
