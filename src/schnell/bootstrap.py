"""The only place that builds concrete objects. Imports are inside the functions: a command pays for its own parts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI

    from schnell.assets.local import LocalAssets
    from schnell.assets.store import AssetStore
    from schnell.database.session import Database
    from schnell.engine.engine import Engine
    from schnell.generations import Runner
    from schnell.loras.library import LoraLibrary
    from schnell.loras.sources import SourceSites
    from schnell.loras.tokens import SourceTokens
    from schnell.outbound.downloads import Downloader
    from schnell.serving.runner import InProcessRunner
    from schnell.serving.scheduler import QueueLimits
    from schnell.settings import Settings
    from schnell.web.services import Services


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


def build_runner(engine: "Engine", limits: "QueueLimits | None" = None) -> "InProcessRunner":
    """A started runner over this engine, in this process."""
    from schnell.serving.active_job import LaneKey
    from schnell.serving.batch_size import BatchSizer
    from schnell.serving.runner import InProcessRunner
    from schnell.serving.scheduler import QueueLimits, Scheduler
    from schnell.serving.worker import Worker

    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(engine, Scheduler(sizer.limit, engine.adapter_slots, limits or QueueLimits()), sizer)
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
    except (OSError, ValueError) as cause:
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
    from schnell.serving.scheduler import QueueLimits

    import_network_classes()
    safety = load_safety_checker(settings.safety, settings.safety_threshold) if settings.safety else None
    engine = Engine(find_model(settings.model), choose_device(settings.device), safety)
    # one place more than admission grants, for the picture that warms the engine up
    runner = build_runner(engine, QueueLimits(settings.queue_limit + 1, settings.team_queue_limit))
    runner.warm_up()
    return runner


def build_database(settings: "Settings") -> "Database":
    """The database that the settings name, not opened yet: `schnell.db` in the data folder by default."""
    from schnell.database.session import Database

    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    return Database(settings.database_url or f"sqlite:{settings.data_dir / 'schnell.db'}")


def build_store(settings: "Settings") -> "AssetStore":
    """The store of pictures that the settings name: the folder `assets` in the data folder by default.

    Raises:
        ConfigurationError: `SCHNELL_ASSETS_URL` is neither `file:PATH` nor `s3://BUCKET/PREFIX`.
    """
    from pathlib import Path
    from urllib.parse import urlsplit

    from schnell.errors import ConfigurationError

    url = urlsplit(settings.assets_url or f"file:{settings.data_dir / 'assets'}")
    if url.scheme == "file" and url.path:
        return _build_local_store(settings, Path(url.path))
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


def build_loras(settings: "Settings", database: "Database") -> "LoraLibrary":
    """The LoRA library of the served model; its files lie in the folder `loras` of the data folder.

    Raises:
        ConfigurationError: a network or a certificate file of the settings cannot be read.
        ModelFolderError: the model is not here.
    """
    from schnell.adapters import read_model_shape
    from schnell.loras.bundled import read_bundled
    from schnell.loras.files import AdapterFiles
    from schnell.loras.library import LoraLibrary
    from schnell.loras.remote import OutsideLoras
    from schnell.models.catalogue import find_model
    from schnell.models.folder import embedded_home

    model = find_model(settings.model).path
    folder = settings.data_dir / "loras"
    files = AdapterFiles(folder / "adapters", read_model_shape(model), settings.lora_max_bytes)
    outside = OutsideLoras(
        database,
        files,
        _build_downloader(settings, folder / "downloads"),
        sites=_build_sites(settings),
        tokens=build_source_tokens(settings, database),
        cache_bytes=settings.lora_cache_bytes,
    )
    bundled = read_bundled(embedded_home() / "loras") if model.is_relative_to(embedded_home()) else ()
    return LoraLibrary(database, files, outside, bundled=bundled, per_team=settings.loras_per_team)


def build_source_tokens(settings: "Settings", database: "Database") -> "SourceTokens":
    """The tokens that teams have for the sites that LoRAs come from."""
    from schnell.loras.tokens import SourceTokens

    return SourceTokens(database, _read_secrets(settings))


def build_services(settings: "Settings", runner: "Runner") -> "Services":
    """Everything that the routes work with."""
    from schnell.accounts.credits import PriceTable
    from schnell.accounts.rates import RateLimits
    from schnell.assets.links import LinkSigner
    from schnell.assets.local import LocalAssets
    from schnell.assets.store import KeyMint
    from schnell.generations import Admission, Generations, History
    from schnell.generations.lora_previews import LoraPreviews
    from schnell.generations.webhooks import Subscriptions, WebhookSender
    from schnell.web.metrics import Metrics
    from schnell.web.native.feature_schema import MODEL_IDS
    from schnell.web.services import ServedModel, Services, WebConfig
    from schnell.web.session import SessionSigner

    database = build_database(settings)
    store = build_store(settings)
    loras = build_loras(settings, database)
    admission = Admission(settings.queue_limit, settings.team_queue_limit)
    metrics = Metrics(runner.snapshot)
    prices = PriceTable(settings.price_per_picture, settings.price_per_megapixel_step, settings.price_per_lora)
    generations = Generations(
        database,
        store,
        runner,
        admission=admission,
        prices=prices,
        resolve_loras=loras.resolve,
        keys=KeyMint(settings.environment),
        instance=settings.instance,
        on_end=metrics.count_end,
    )
    secrets = _read_secrets(settings)
    return Services(
        config=WebConfig(
            public_url=settings.base_url,
            link_seconds=settings.link_seconds,
            max_body_bytes=settings.max_body_bytes,
            body_limits={"/api/loras": settings.lora_max_bytes + 65_536},
            cors_origins=settings.cors_origins,
            metrics_token=settings.metrics_token,
        ),
        database=database,
        store=store,
        local_assets=store if isinstance(store, LocalAssets) else None,
        links=LinkSigner(*secrets),
        runner=runner,
        generations=generations,
        history=History(database, store, admission),
        admission=admission,
        rates=RateLimits(settings.rate_limit),
        sessions=SessionSigner(secrets[0]),
        webhooks=WebhookSender(
            secrets[0], Subscriptions(database, settings.instance), private=settings.webhook_private
        ),
        metrics=metrics,
        model=ServedModel(settings.model, MODEL_IDS),
        loras=loras,
        lora_previews=LoraPreviews(runner, loras),
        source_tokens=build_source_tokens(settings, database),
    )


def build_app(settings: "Settings", runner: "Runner") -> "FastAPI":
    """The server's app around `runner`. Its lifespan migrates, recovers, drains and closes."""
    from schnell.web.app import RESUMES, create_app
    from schnell.web.lifecycle import Lifecycle
    from schnell.web.openapi import keep_openapi_true

    lifecycle = Lifecycle(
        instance=settings.instance,
        bootstrap_key=settings.bootstrap_key,
        retention_days=settings.retention_days,
        drain_seconds=settings.drain_seconds,
        resumes=RESUMES,
    )
    app = create_app(build_services(settings, runner), lifecycle)
    keep_openapi_true(app)
    return app


def _read_secrets(settings: "Settings") -> tuple[str, ...]:
    """The operator's secrets, or the one that is kept in the data folder. The first is the one to sign with."""
    from schnell.assets.links import load_link_secret

    return settings.link_secrets or (load_link_secret(settings.data_dir / "link.secret"),)


def _build_local_store(settings: "Settings", folder: "Path") -> "LocalAssets":
    from schnell.assets.links import signer_from
    from schnell.assets.local import LocalAssets

    signer = signer_from(settings.link_secrets, settings.data_dir / "link.secret")
    return LocalAssets(folder, signer, settings.base_url)


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
