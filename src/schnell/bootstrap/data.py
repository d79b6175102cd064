"""The settings, and what lies on disk or beyond: database, pictures, LoRAs."""

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from ssl import SSLContext
    from urllib.parse import SplitResult

    from schnell.assets.local import LocalAssets
    from schnell.assets.store import AssetStore
    from schnell.database.session import Database
    from schnell.file_locks import LockedFiles
    from schnell.loras.library import LoraLibrary
    from schnell.loras.sources import SourceSites
    from schnell.loras.tokens import SourceTokens
    from schnell.outbound.addresses import AddressPolicy
    from schnell.outbound.downloads import Downloader
    from schnell.settings import Settings
    from schnell.side_processes import SideProcesses

#: The settings that commands take as options, too.
_OPTIONS: Final = {
    "host": "--host",
    "port": "--port",
    "data_dir": "--data-dir",
    "model": "--model",
    "ray_address": "--address",
    "replicas_min": "--replicas",
    "replicas_max": "--most",
}


def read_settings(**overrides: Any) -> "Settings":
    """The settings of this process; `overrides` (None: not given) come from the command line.

    Raises:
        ConfigurationError: naming the settings that cannot be used, and why.
    """
    from pydantic import ValidationError

    from schnell.errors import ConfigurationError
    from schnell.settings import Settings
    from schnell.validation import explain

    def unknown(name: str) -> str:
        nearest = Settings.nearest_name(name)
        return f"SCHNELL_{name} is no setting" + (f"; did you mean {nearest}?" if nearest else "")

    given = {name: value for name, value in overrides.items() if value is not None}

    def problem(found: "Mapping[str, Any]") -> str:
        name = "_".join(map(str, found["loc"]))
        if found["type"] == "extra_forbidden":
            return unknown(name.upper())
        # what was typed is named as it was typed
        option = _OPTIONS.get(name.lower()) if name.lower() in given else None
        return f"{option or f'SCHNELL_{name.upper()}'}: {explain(found)}"

    try:
        settings = Settings(**given)
    except ValidationError as cause:
        wrong = [problem(each) for each in cause.errors()]
        wrong += map(unknown, Settings.unknown_names())
        raise ConfigurationError("; ".join(wrong)) from cause
    except (OSError, ValueError) as cause:  # tomllib's errors are ValueErrors too
        raise ConfigurationError(f"schnell.toml cannot be read: {cause}") from cause
    if misspelt := Settings.unknown_names():
        raise ConfigurationError("; ".join(map(unknown, misspelt)))
    # both folders are found through the environment, by this process and by those that it starts
    for name in ("models_dir", "cache_dir"):
        if folder := getattr(settings, name):
            os.environ.setdefault(f"SCHNELL_{name.upper()}", str(folder))
    return settings


def build_database(settings: "Settings") -> "Database":
    """The database that the settings name, not opened yet: `schnell.db` in the data folder by default."""
    from schnell.database.session import Database

    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    return Database(database_url(settings))


def database_url(settings: "Settings") -> str:
    """The database that the settings name: `schnell.db` in the data folder by default."""
    return settings.database_url or f"sqlite:{settings.data_dir / 'schnell.db'}"


def has_data(settings: "Settings") -> bool:
    """Whether a database has been made on SQLite; one on PostgreSQL is looked for when it is opened.

    Raises:
        ConfigurationError: `SCHNELL_DATABASE_URL` cannot be read.
    """
    from pathlib import Path

    from schnell.database.session import parse_database_url

    url = parse_database_url(database_url(settings))
    return url.get_backend_name() != "sqlite" or url.database in {None, "", ":memory:"} or Path(url.database).exists()


def check_data(settings: "Settings") -> None:
    """Refuse data that are not there, as commands do that make none: the folder may be mistyped.

    Raises:
        ConfigurationError: there is no database yet.
    """
    from schnell.errors import ConfigurationError

    if has_data(settings):
        return
    if settings.database_url is not None:
        raise ConfigurationError(f"SCHNELL_DATABASE_URL: there is no database {settings.database_url}")
    raise ConfigurationError(
        f"there is no database in {settings.data_dir}: name the data folder of a server that was started before "
        "(--data-dir, SCHNELL_DATA_DIR)"
    )


def hold_data(settings: "Settings") -> "AbstractContextManager[None]":
    """Keep other servers off the data of a server on SQLite, which serves one process, while the block runs.

    Several servers may share a PostgreSQL database, and for a rolling restart a data folder.

    Raises:
        StartError: another server holds the data folder or the database file.
    """
    from contextlib import nullcontext
    from pathlib import Path

    from schnell.database.session import parse_database_url
    from schnell.file_locks import hold_files

    paths = [settings.data_dir / "server.lock"]
    if settings.database_url is not None:
        url = parse_database_url(settings.database_url)
        if url.get_backend_name() != "sqlite":
            return nullcontext()
        file = Path(url.database or ":memory:").resolve()
        if file.name != ":memory:" and file.parent != settings.data_dir.resolve():
            paths.append(file.with_name(f"{file.name}.lock"))
    return hold_files(paths)


def build_store(settings: "Settings", server_id: str | None = None) -> "AssetStore":
    """The store of pictures that the settings name: the folder `assets` in the data folder by default.

    `server_id` names the drafts of a server, so that others leave them alone.

    Raises:
        ConfigurationError: `SCHNELL_ASSETS_URL` is neither `file:PATH` nor `s3://BUCKET/PREFIX`.
    """
    from pathlib import Path

    url = check_store(settings)
    if url.scheme == "file":
        return _build_local_store(settings, Path(url.path), server_id)
    from schnell.assets.s3 import S3Assets

    return S3Assets(
        url.netloc,
        url.path,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        region=settings.s3_region,
    )


def check_store(settings: "Settings") -> "SplitResult":
    """Where pictures are kept, as a URL: `file:PATH` or `s3://BUCKET/PREFIX`.

    Raises:
        ConfigurationError: `SCHNELL_ASSETS_URL` is neither.
    """
    from urllib.parse import urlsplit

    from schnell.errors import ConfigurationError

    url = urlsplit(settings.assets_url or f"file:{settings.data_dir / 'assets'}")
    if not (url.path if url.scheme == "file" else url.netloc and url.scheme == "s3"):
        raise ConfigurationError("SCHNELL_ASSETS_URL must be file:PATH or s3://BUCKET/PREFIX")
    return url


def build_loras(
    settings: "Settings",
    database: "Database",
    servers: "LockedFiles | None" = None,
    store: "AssetStore | None" = None,
    beside: "SideProcesses | None" = None,
) -> "LoraLibrary":
    """The LoRA library of the served model; its files lie in the folder `loras` of the data folder.

    `servers` are the servers that live on the data folder, as a server sees them; a command sees all of them as others.
    `store` is where servers that share a database find each other's files. A server reads a large file in a process of
    its own, one of those `beside` its engine.

    Raises:
        ConfigurationError: a network or a certificate file of the settings cannot be read.
        ModelFolderError: the model is not here.
    """
    from schnell.adapters import read_model_shape
    from schnell.loras.bundled import read_bundled
    from schnell.loras.files import AdapterFiles
    from schnell.loras.library import LoraLibrary
    from schnell.loras.remote import RemoteLoras
    from schnell.loras.turns import Turns
    from schnell.models.catalogue import find_model
    from schnell.models.folder import embedded_home

    model = find_model(settings.model).path
    folder = settings.data_dir / "loras"
    files = AdapterFiles(
        folder / "adapters",
        read_model_shape(model),
        settings.lora_max_bytes,
        used_by_others=(servers or build_locked_files(settings)).any_other,
        # a command works for the operator alone, and has nothing else to do meanwhile
        apart=beside,
    )
    remote = RemoteLoras(
        database,
        files,
        _build_downloader(settings, folder / "downloads"),
        sites=_build_sites(settings),
        tokens=build_source_tokens(settings, database),
        cache_bytes=settings.lora_cache_bytes,
        turns=Turns(
            "LoRA downloads", at_once=settings.lora_fetches, per_team=settings.lora_fetches_per_team, waiting=512
        ),
    )
    # SQLite has one server, which finds its files where it has put them
    shared = None if database.dialect == "sqlite" else store or build_store(settings)
    # they were trained for the embedded model and fit no other
    bundled = read_bundled(embedded_home() / "loras") if model.is_relative_to(embedded_home()) else ()
    return LoraLibrary(database, files, remote, bundled=bundled, per_team=settings.loras_per_team, store=shared)


def build_locked_files(settings: "Settings") -> "LockedFiles":
    """The locked files of the servers that live on the data folder."""
    from schnell.file_locks import LockedFiles

    return LockedFiles(settings.data_dir / "servers")


def build_source_tokens(settings: "Settings", database: "Database") -> "SourceTokens":
    """The tokens that teams have for the sites that LoRAs come from."""
    from schnell.loras.tokens import SourceTokens

    return SourceTokens(database, read_secrets(settings))


def read_secrets(settings: "Settings") -> tuple[str, ...]:
    """The operator's secrets, or the one kept in the data folder. The first signs; all of them verify."""
    from schnell.assets.links import load_link_secret

    return settings.link_secrets or (load_link_secret(settings.data_dir / "link.secret"),)


def _build_local_store(settings: "Settings", folder: "Path", server_id: str | None) -> "LocalAssets":
    from schnell.assets.links import LinkSigner
    from schnell.assets.local import LocalAssets

    return LocalAssets(folder, LinkSigner(*read_secrets(settings)), settings.base_url, owner=server_id)


def read_download_rules(settings: "Settings") -> "tuple[AddressPolicy, SSLContext | None]":
    """Where LoRAs may be fetched from, and the authorities that vouch for it (None: the usual ones).

    Raises:
        ConfigurationError: a network or a certificate file of the settings cannot be read.
    """
    import ssl

    from schnell.errors import ConfigurationError
    from schnell.outbound.addresses import AddressPolicy

    try:
        authorities = ssl.create_default_context(cafile=settings.lora_ca_file) if settings.lora_ca_file else None
        policy = AddressPolicy(
            settings.lora_allow_hosts, settings.lora_deny_hosts, tuple(map(str, settings.lora_private_networks))
        )
    except (OSError, ValueError) as cause:
        raise ConfigurationError(f"the settings of LoRA downloads cannot be used: {cause}") from cause
    return policy, authorities


def _build_downloader(settings: "Settings", folder: "Path") -> "Downloader":
    from schnell.outbound.downloads import Downloader, DownloadLimits
    from schnell.outbound.room import FetchBudget

    policy, authorities = read_download_rules(settings)
    limits = DownloadLimits(settings.lora_max_bytes, settings.lora_seconds)
    budget = FetchBudget(settings.lora_fetch_bytes, settings.lora_fetch_bytes_per_team)
    return Downloader(folder, policy, limits, offline=settings.offline, authorities=authorities, budget=budget)


def _build_sites(settings: "Settings") -> "SourceSites":
    from schnell.loras.sources import SourceSites

    tokens = (settings.hub_token, settings.civitai_token, settings.replicate_token)
    hub, civitai, replicate = (token.get_secret_value() if token else None for token in tokens)
    return SourceSites(
        hub=settings.hub_url or "https://huggingface.co",
        civitai=settings.civitai_url or "https://civitai.com",
        replicate=settings.replicate_url or "https://replicate.com",
        hub_token=hub,
        civitai_token=civitai,
        replicate_token=replicate,
    )
