"""The web application, out of settings, around a runner."""

from typing import TYPE_CHECKING, Final

from schnell.bootstrap.data import (
    build_database,
    build_locked_files,
    build_loras,
    build_source_tokens,
    build_store,
    check_store,
    read_download_rules,
    read_secrets,
)
from schnell.bootstrap.proof import build_proof

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastapi import FastAPI

    from schnell.accounts.credits import PriceTable
    from schnell.accounts.identity import Caller
    from schnell.accounts.openid import OpenIdProvider
    from schnell.accounts.rates import RateLimits
    from schnell.assets.store import AssetStore
    from schnell.assets.thumbnails import Thumbnails
    from schnell.database.session import Database
    from schnell.errors import SchnellError
    from schnell.file_locks import LockedFiles
    from schnell.generations import Admission, Closings, Record, Runner
    from schnell.generations.loras import LoraPreviews
    from schnell.generations.servers import ServerLease
    from schnell.generations.service import EndListener
    from schnell.generations.webhooks import WebhookSender
    from schnell.loras.library import LoraLibrary
    from schnell.loras.trainings import LoraTrainings
    from schnell.settings import Settings
    from schnell.side_processes import SideProcesses
    from schnell.web.gauges import Gauges
    from schnell.web.metrics import Metrics
    from schnell.web.services import ServedModel, Services, WebConfig

#: Paths whose bodies are read before it is known who asks: they are short, and no more is taken.
_SMALL: Final = (
    "/api/session",
    "/api/admin",
    "/api/lora-sources",
    "/api/keys",
    "/api/password",
    "/api/invites",
)


def check_settings(settings: "Settings") -> None:
    """Find what of a server's settings cannot be used before a model is loaded, and anything is made.

    Raises:
        ConfigurationError: naming the setting.
    """
    _build_openid(settings)
    _build_served_model(settings)
    check_store(settings)
    read_download_rules(settings)


def build_services(settings: "Settings", runner: "Runner", beside: "SideProcesses") -> "Services":
    """Everything that the routes work with. The processes `beside` are what the runner pauses, if it does."""
    from schnell.assets.links import LinkSigner
    from schnell.assets.local import LocalAssets
    from schnell.assets.store import KeyMint
    from schnell.generations import Admission, Closings, Generations, History
    from schnell.generations.loras import FileHoldingRunner, LoraPreviews
    from schnell.web.flow_cookie import FlowCookies
    from schnell.web.services import Services

    database = build_database(settings)
    lease = _build_lease(settings, database, servers := build_locked_files(settings))
    store = build_store(settings, lease.id)
    runner = FileHoldingRunner(runner, loras := build_loras(settings, database, servers, store, beside))
    admission = Admission(settings.queue_limit, settings.team_queue_limit)
    gauges = _build_gauges(settings, database, loras)
    metrics = _build_metrics(settings, runner, closings := Closings(database, store), gauges)
    generations = Generations(
        database,
        store,
        runner,
        admission=admission,
        closings=closings,
        prices=_build_prices(settings),
        loras=loras,
        keys=KeyMint(settings.environment),
        instance=lease.id,
        on_end=_report_to(metrics, thumbnails := _build_thumbnails(store, admission)),
        go_fast_lora_factor=settings.go_fast_lora_factor,
    )
    previews = LoraPreviews(runner, loras)
    secrets = read_secrets(settings)
    return Services(
        config=_build_web_config(settings, trainings := _build_trainings(settings, lease.id, loras, previews)),
        database=database,
        lease=lease,
        store=store,
        thumbnails=thumbnails,
        local_assets=store if isinstance(store, LocalAssets) else None,
        links=LinkSigner(*secrets),
        runner=runner,
        generations=generations,
        history=History(database, store, admission),
        admission=admission,
        closings=closings,
        rates=_build_rates(settings, database),
        openid=_build_openid(settings),
        flows=FlowCookies(secrets),
        webhooks=_build_webhooks(settings, database, lease.id, secrets[0], metrics),
        metrics=metrics,
        gauges=gauges,
        model=_build_served_model(settings),
        loras=loras,
        lora_previews=previews,
        trainings=trainings,
        source_tokens=build_source_tokens(settings, database),
        signer=build_proof(settings).signer,
    )


def build_app(settings: "Settings", runner: "Runner", beside: "SideProcesses") -> "FastAPI":
    """The server's app around `runner`, which may pause the processes `beside`.

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
    app = create_app(build_services(settings, runner, beside), lifecycle)
    remove_unsent_statuses(app)
    return app


def _build_rates(settings: "Settings", database: "Database") -> "RateLimits":
    from schnell.accounts.rates import RateLimits
    from schnell.accounts.shared_rates import SharedCounter

    # a server alone on its SQLite needs no statement for a count
    return RateLimits(settings.rate_limit, SharedCounter(database) if database.dialect == "postgresql" else None)


def _build_thumbnails(store: "AssetStore", admission: "Admission") -> "Thumbnails":
    from schnell.assets.thumbnails import Thumbnails

    return Thumbnails(store, is_busy=lambda: bool(admission.all()))


def _build_trainings(
    settings: "Settings", server_id: str, loras: "LoraLibrary", previews: "LoraPreviews"
) -> "LoraTrainings":
    from schnell.loras.trainings import LoraTrainings

    # a folder of this server's own: for a rolling restart, two servers share a data folder
    folder = settings.data_dir / "trainings" / server_id
    return LoraTrainings(
        loras, folder, model=settings.model, most_minutes=settings.training_minutes, on_added=previews.ask_for
    )


def _build_openid(settings: "Settings") -> "OpenIdProvider | None":
    """The provider of `SCHNELL_OIDC_ISSUER`, None without one."""
    from schnell.accounts.openid import OpenIdConfig, OpenIdProvider
    from schnell.errors import ConfigurationError

    if not settings.oidc_issuer:
        return None
    if not settings.oidc_client_id:
        raise ConfigurationError("SCHNELL_OIDC_ISSUER needs SCHNELL_OIDC_CLIENT_ID, which the provider gives a client")
    roles = dict(_read_roles(settings.oidc_roles))
    secret = settings.oidc_client_secret
    config = OpenIdConfig(
        settings.oidc_issuer,
        settings.oidc_client_id,
        secret.get_secret_value() if secret else None,
        name=settings.oidc_name,
        scopes=settings.oidc_scopes,
        role_claim=settings.oidc_role_claim,
        roles=roles,
        team=settings.oidc_team,
        ca_file=settings.oidc_ca_file,
    )
    return OpenIdProvider(config, f"{settings.base_url}/api/session/openid/callback")


def _read_roles(texts: "Sequence[str]") -> "Iterator[tuple[str, str]]":
    from schnell.errors import ConfigurationError

    for text in texts:
        value, _, rank = (part.strip() for part in text.rpartition("="))
        if not value or rank not in {"OPERATOR", "ADMIN", "MEMBER"}:
            problem = f"{text[:100]!r} must be VALUE=ROLE, the role OPERATOR, ADMIN or MEMBER"
            raise ConfigurationError(f"SCHNELL_OIDC_ROLES: {problem}")
        yield value, rank


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


def _build_served_model(settings: "Settings") -> "ServedModel":
    from schnell.errors import ConfigurationError, InvalidFieldError
    from schnell.spec import MIN_LORA_SCALE
    from schnell.web.native.feature_schema import MODEL_IDS
    from schnell.web.native.lora_names import choose_model
    from schnell.web.services import ServedModel

    served = ServedModel(settings.model, MODEL_IDS)
    aliases = {}
    for text in settings.model_aliases:
        name, _, target = (part.strip() for part in text.partition("="))
        try:
            # a name that is served already must go on to mean what it means
            chosen = choose_model(served, target or MODEL_IDS[0], MIN_LORA_SCALE)
            holds = bool(name and chosen and not choose_model(served, name, MIN_LORA_SCALE))
        except InvalidFieldError:
            holds = False
        if not holds:
            problem = f"{text[:100]!r} must be NAME or NAME=ID, the id one that is served and the name not"
            raise ConfigurationError(f"SCHNELL_MODEL_ALIASES: {problem}")
        aliases[name] = target or MODEL_IDS[0]
    return ServedModel(settings.model, MODEL_IDS, aliases)


def _build_web_config(settings: "Settings", trainings: "LoraTrainings") -> "WebConfig":
    from schnell.loras.trainings import TRAINING_BYTES
    from schnell.web.services import WebConfig

    return WebConfig(
        public_url=settings.base_url,
        link_seconds=settings.link_seconds,
        max_body_bytes=settings.max_body_bytes,
        # an upload's form fields and multipart boundaries come on top of the file
        body_limits={
            "/api/loras": settings.lora_max_bytes + 65_536,
            "/api/verify": settings.verify_max_bytes,
            "/train": TRAINING_BYTES if trainings.most_minutes else settings.max_body_bytes,
            # read before it is known who asks: FastAPI parses these bodies before it looks for a key
            **dict.fromkeys(_SMALL, 65_536),
        },
        cors_origins=settings.cors_origins,
        metrics_token=settings.metrics_token,
        result_prefix=settings.result_prefix,
        credit_value=settings.credit_value,
        visitor_rate_limit=settings.verify_rate_limit,
        sign_in_rate_limit=settings.sign_in_rate_limit,
        on_cluster=settings.runner == "ray",
    )


def _build_metrics(settings: "Settings", runner: "Runner", closings: "Closings", gauges: "Gauges") -> "Metrics":
    from importlib.metadata import version

    from schnell.web.metrics import Metrics

    metrics = Metrics(runner.snapshot, closings, [gauges])
    metrics.tell_build(version("schnell"), settings.model)
    return metrics


def _report_to(metrics: "Metrics", thumbnails: "Thumbnails") -> "EndListener":
    """What is called with every generation that ended: it is counted, has its line in the log, and gets thumbnails."""
    from schnell.generations.end_log import log_end

    def report(record: "Record", error: "SchnellError | None", caller: "Caller") -> None:
        metrics.count_end(record, error, caller)
        log_end(record, error, caller)
        thumbnails.ask_for(image.key for image in record.images)

    return report


def _build_gauges(settings: "Settings", database: "Database", loras: "LoraLibrary") -> "Gauges":
    from schnell.web.gauges import Gauges

    return Gauges(database, settings.data_dir, cache_bytes=settings.lora_cache_bytes, lookups=loras.remote_lookups)


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
