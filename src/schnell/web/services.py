"""What routes work with: one value that holds every service, reached through the request's app."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from schnell.accounts.last_uses import LastUses
from schnell.accounts.openid import OpenIdProvider
from schnell.accounts.passwords import PasswordHashes
from schnell.accounts.rates import RateLimits
from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.assets.store import AssetStore
from schnell.assets.thumbnails import Thumbnails
from schnell.database.session import Database
from schnell.generations import Admission, Closings, Generations, History, Runner
from schnell.generations.loras import LoraPreviews
from schnell.generations.servers import ServerLease
from schnell.generations.webhooks import WebhookSender
from schnell.loras.library import LoraLibrary
from schnell.loras.tokens import SourceTokens
from schnell.loras.trainings import LoraTrainings
from schnell.loras.turns import Turns
from schnell.provenance.credentials import CredentialsSigner
from schnell.provenance.isolation import IsolatedChecks
from schnell.web.flow_cookie import FlowCookies
from schnell.web.gauges import Gauges
from schnell.web.metrics import Metrics
from schnell.web.response_headers import header_text


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The operator's settings for HTTP. `body_limits` gives paths with a prefix another limit than `max_body_bytes`.

    `result_prefix` stands before the keys in `resultObject`. `credit_value` is what a credit is worth in money.
    `visitor_rate_limit` is for those who check pictures without a key, `sign_in_rate_limit` for failures to sign in,
    both by address. `on_cluster`: the pictures are drawn by replicas on a cluster.
    """

    public_url: str
    link_seconds: int = 604_800
    max_body_bytes: int = 1_048_576
    body_limits: Mapping[str, int] = field(default_factory=dict)
    cors_origins: tuple[str, ...] = ()
    metrics_token: str | None = None
    result_prefix: str = ""
    credit_value: float = 1.0
    visitor_rate_limit: str | None = None
    sign_in_rate_limit: str | None = None
    on_cluster: bool = False


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that is served under every id in `ids`; answers show the first.

    `aliases` are names of other services' models that clients have built in, with the id that each stands for here.
    """

    name: str
    ids: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model's name, or the last part of its folder's path, in ASCII so that a header can hold it."""
        return header_text(self.name.rstrip("/").rpartition("/")[2])

    def find(self, model_id: str) -> str | None:
        """The id to keep in a record; None for a model that is not served."""
        return model_id if model_id in {*self.ids, self.label} else None


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that routes work with, built by `schnell.bootstrap`. Without `signer`, nothing is signed."""

    config: WebConfig
    database: Database
    lease: ServerLease
    store: AssetStore
    local_assets: LocalAssets | None
    thumbnails: Thumbnails
    links: LinkSigner
    runner: Runner
    generations: Generations
    history: History
    admission: Admission
    closings: Closings
    rates: RateLimits
    openid: OpenIdProvider | None
    flows: FlowCookies
    metrics: Metrics
    gauges: Gauges
    model: ServedModel
    loras: LoraLibrary
    lora_previews: LoraPreviews
    trainings: LoraTrainings
    source_tokens: SourceTokens
    webhooks: WebhookSender
    signer: CredentialsSigner | None
    last_uses: LastUses = field(default_factory=LastUses)
    passwords: PasswordHashes = field(default_factory=PasswordHashes)
    checks: IsolatedChecks = field(default_factory=IsolatedChecks)
    uploads: Turns = field(default_factory=lambda: Turns("uploads", at_once=16, per_team=4))


def services_of(connection: HTTPConnection) -> Services:
    """The services of the app that a request came to."""
    return services_of_app(connection.app)


def services_of_app(app: Starlette) -> Services:
    """The services of an app."""
    return cast("Services", app.state.services)
