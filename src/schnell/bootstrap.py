"""The only place that builds concrete objects out of settings.

Each function imports what it builds in its own body. Torch, FastAPI, SQLAlchemy and boto3 take a second or more
together, and a command should wait only for those that it uses: `schnell teams` for no torch, `schnell generate` for no
web framework.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from fastapi import FastAPI

    from schnell.accounts.credits import PriceTable
    from schnell.assets.local import LocalAssets
    from schnell.assets.store import AssetStore
    from schnell.database.session import Database
    from schnell.engine.engine import Engine
    from schnell.file_locks import LockedFiles
    from schnell.generations import Runner
    from schnell.generations.servers import ServerLease
    from schnell.generations.webhooks import WebhookSender
    from schnell.loras.library import LoraLibrary
    from schnell.loras.sources import SourceSites
    from schnell.loras.tokens import SourceTokens
    from schnell.outbound.downloads import Downloader
    from schnell.serving.runner import InProcessRunner
    from schnell.settings import Settings
    from schnell.web.metrics import Metrics
    from schnell.web.services import Services, WebConfig


def build_engine(model: str, *, device: str = "auto", safety: bool = True) -> "Engine":
    """The engine for a model's name or folder, without the safety check if `safety` is off.

    Raises:
        ModelFolderError: no such model here, or no such device.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    folder = find_model(model)
    import_network_classes()
    return Engine(folder, choose_device(device), load_safety_checker() if safety else None)


def build_runner(engine: "Engine") -> "InProcessRunner":
    """A runner over this engine in this process, its worker thread started."""
    from schnell.serving.batch_size import BatchSizer
    from schnell.serving.queue import JobQueue
    from schnell.serving.runner import InProcessRunner
    from schnell.serving.worker import LaneKey, Worker

    # one for both: the worker reports how long steps took, the queue asks how large a batch may be
    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(engine, JobQueue(sizer.limit, engine.adapter_slots), sizer)
    worker.start()
    return InProcessRunner(worker)


def read_settings(**overrides: Any) -> "Settings":
    """The settings of this process; `overrides` (None: not given) come from the command line.

    Raises:
        ConfigurationError: naming the settings that cannot be used, and why.
    """
    from pydantic import ValidationError

    from schnell.errors import ConfigurationError
    from schnell.settings import Settings

    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as cause:
        wrong = (f"SCHNELL_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in cause.errors())
        raise ConfigurationError("; ".join(wrong)) from cause
    except (OSError, ValueError) as cause:  # tomllib's errors are ValueErrors too
        raise ConfigurationError(f"schnell.toml cannot be read: {cause}") from cause


def build_server_runner(settings: "Settings") -> "Runner":
    """The server's runner: the engine with the operator's model and safety classifiers, loaded and started.

    Raises:
        ModelFolderError, SafetyUnavailableError: the model or a classifier cannot be loaded.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    import_network_classes()
    safety = load_safety_checker(settings.safety, settings.safety_threshold) if settings.safety else None
    engine = Engine(find_model(settings.model), choose_device(settings.device), safety)
    runner = build_runner(engine)
    runner.warm_up()
    return runner


def build_database(settings: "Settings") -> "Database":
    """The database that the settings name, not opened yet: `schnell.db` in the data folder by default."""
    from schnell.database.session import Database

    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    return Database(settings.database_url or f"sqlite:{settings.data_dir / 'schnell.db'}")


def hold_data(settings: "Settings") -> "AbstractContextManager[None]":
    """Keep other servers off the data of a server on SQLite, which serves one process, while the block runs.

    Several servers may share a PostgreSQL database, and for a rolling restart a data folder.

    Raises:
        ConfigurationError: another server holds the data folder or the database file.
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
    from urllib.parse import urlsplit

    from schnell.errors import ConfigurationError

    url = urlsplit(settings.assets_url or f"file:{settings.data_dir / 'assets'}")
    if url.scheme == "file" and url.path:
        return _build_local_store(settings, Path(url.path), server_id)
    if url.scheme != "s3" or not url.netloc:
        raise ConfigurationError("SCHNELL_ASSETS_URL must be file:PATH or s3://BUCKET/PREFIX")
    from schnell.assets.s3 import S3Assets

    return S3Assets(
        url.netloc,
        url.path,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        region=settings.s3_region,
    )


def build_loras(settings: "Settings", database: "Database", servers: "LockedFiles | None" = None) -> "LoraLibrary":
    """The LoRA library of the served model; its files lie in the folder `loras` of the data folder.

    `servers` are the servers that live on the data folder, as a server sees them; a command sees all of them as others.

    Raises:
        ConfigurationError: a network or a certificate file of the settings cannot be read.
        ModelFolderError: the model is not here.
    """
    from schnell.adapters import read_model_shape
    from schnell.loras.bundled import read_bundled
    from schnell.loras.files import AdapterFiles
    from schnell.loras.library import LoraLibrary
    from schnell.loras.remote import RemoteLoras
    from schnell.models.catalogue import find_model
    from schnell.models.folder import embedded_home

    model = find_model(settings.model).path
    folder = settings.data_dir / "loras"
    servers = servers or build_locked_files(settings)
    files = AdapterFiles(
        folder / "adapters", read_model_shape(model), settings.lora_max_bytes, used_by_others=servers.any_other
    )
    remote = RemoteLoras(
        database,
        files,
        _build_downloader(settings, folder / "downloads"),
        sites=_build_sites(settings),
        tokens=build_source_tokens(settings, database),
        cache_bytes=settings.lora_cache_bytes,
    )
    # they were trained for the embedded model and fit no other
    bundled = read_bundled(embedded_home() / "loras") if model.is_relative_to(embedded_home()) else ()
    return LoraLibrary(database, files, remote, bundled=bundled, per_team=settings.loras_per_team)


def build_locked_files(settings: "Settings") -> "LockedFiles":
    """The locked files of the servers that live on the data folder."""
    from schnell.file_locks import LockedFiles

    return LockedFiles(settings.data_dir / "servers")


def build_source_tokens(settings: "Settings", database: "Database") -> "SourceTokens":
    """The tokens that teams have for the sites that LoRAs come from."""
    from schnell.loras.tokens import SourceTokens

    return SourceTokens(database, _read_secrets(settings))


def build_services(settings: "Settings", runner: "Runner") -> "Services":
    """Everything that the routes work with."""
    from schnell.accounts.rates import RateLimits
    from schnell.assets.links import LinkSigner
    from schnell.assets.local import LocalAssets
    from schnell.assets.store import KeyMint
    from schnell.generations import Admission, Closings, Generations, History
    from schnell.generations.loras import FileHoldingRunner, LoraPreviews
    from schnell.web.metrics import Metrics
    from schnell.web.native.feature_schema import MODEL_IDS
    from schnell.web.services import ServedModel, Services
    from schnell.web.session import SessionSigner

    database = build_database(settings)
    servers = build_locked_files(settings)
    lease = _build_lease(settings, database, servers)
    store = build_store(settings, lease.id)
    loras = build_loras(settings, database, servers)
    runner = FileHoldingRunner(runner, loras)
    admission = Admission(settings.queue_limit, settings.team_queue_limit)
    closings = Closings(database, store)
    metrics = Metrics(runner.snapshot, closings)
    generations = Generations(
        database,
        store,
        runner,
        admission=admission,
        closings=closings,
        prices=_build_prices(settings),
        resolve_loras=loras.resolve,
        keys=KeyMint(settings.environment),
        instance=lease.id,
        on_end=metrics.count_end,
    )
    secrets = _read_secrets(settings)
    return Services(
        config=_build_web_config(settings),
        database=database,
        lease=lease,
        store=store,
        local_assets=store if isinstance(store, LocalAssets) else None,
        links=LinkSigner(*secrets),
        runner=runner,
        generations=generations,
        history=History(database, store, admission),
        admission=admission,
        closings=closings,
        rates=RateLimits(settings.rate_limit),
        sessions=SessionSigner(secrets[0]),
        webhooks=_build_webhooks(settings, database, lease.id, secrets[0], metrics),
        metrics=metrics,
        model=ServedModel(settings.model, MODEL_IDS),
        loras=loras,
        lora_previews=LoraPreviews(runner, loras),
        source_tokens=build_source_tokens(settings, database),
    )


def _build_lease(settings: "Settings", database: "Database", servers: "LockedFiles") -> "ServerLease":
    from schnell.generations.servers import ServerLease

    return ServerLease(
        database,
        servers,
        label=settings.instance,
        seconds=settings.lease_seconds,
        # `hold_data` has seen to it
        alone=database.dialect == "sqlite",
    )


def build_app(settings: "Settings", runner: "Runner") -> "FastAPI":
    """The server's app around `runner`.

    Its lifespan migrates the database, settles what a crash left unfinished, and closes everything at the end.
    """
    from schnell.web.app import AFTER_RECOVERY, create_app
    from schnell.web.lifecycle import Lifecycle
    from schnell.web.openapi import remove_unsent_statuses

    lifecycle = Lifecycle(
        bootstrap_key=settings.bootstrap_key,
        retention_days=settings.retention_days,
        drain_seconds=settings.drain_seconds,
        after_recovery=AFTER_RECOVERY,
    )
    app = create_app(build_services(settings, runner), lifecycle)
    remove_unsent_statuses(app)
    return app


def _build_web_config(settings: "Settings") -> "WebConfig":
    from schnell.web.services import WebConfig

    return WebConfig(
        public_url=settings.base_url,
        link_seconds=settings.link_seconds,
        max_body_bytes=settings.max_body_bytes,
        # an upload's form fields and multipart boundaries come on top of the file
        body_limits={"/api/loras": settings.lora_max_bytes + 65_536},
        cors_origins=settings.cors_origins,
        metrics_token=settings.metrics_token,
    )


def _build_prices(settings: "Settings") -> "PriceTable":
    from schnell.accounts.credits import PriceTable

    return PriceTable(settings.price_per_picture, settings.price_per_megapixel_step, settings.price_per_lora)


def _build_webhooks(
    settings: "Settings", database: "Database", server_id: str, secret: str, metrics: "Metrics"
) -> "WebhookSender":
    from schnell.generations.webhooks import Subscriptions, WebhookSender

    return WebhookSender(
        secret,
        Subscriptions(database, server_id),
        private=settings.webhook_private,
        on_failure=lambda: metrics.count_background_failure("webhooks"),
    )


def _read_secrets(settings: "Settings") -> tuple[str, ...]:
    """The operator's secrets, or the one kept in the data folder. The first signs; all of them verify."""
    from schnell.assets.links import load_link_secret

    return settings.link_secrets or (load_link_secret(settings.data_dir / "link.secret"),)


def _build_local_store(settings: "Settings", folder: "Path", server_id: str | None) -> "LocalAssets":
    from schnell.assets.links import LinkSigner
    from schnell.assets.local import LocalAssets

    return LocalAssets(folder, LinkSigner(*_read_secrets(settings)), settings.base_url, owner=server_id)


def _build_downloader(settings: "Settings", folder: "Path") -> "Downloader":
    import ssl

    from schnell.errors import ConfigurationError
    from schnell.outbound.addresses import AddressPolicy
    from schnell.outbound.downloads import Downloader, DownloadLimits

    try:
        authorities = ssl.create_default_context(cafile=settings.lora_ca_file) if settings.lora_ca_file else None
        policy = AddressPolicy(
            settings.lora_allow_hosts, settings.lora_deny_hosts, tuple(map(str, settings.lora_private_networks))
        )
    except (OSError, ValueError) as cause:
        raise ConfigurationError(f"the settings of LoRA downloads cannot be used: {cause}") from cause
    limits = DownloadLimits(settings.lora_max_bytes, settings.lora_seconds)
    return Downloader(folder, policy, limits, offline=settings.offline, authorities=authorities)


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
