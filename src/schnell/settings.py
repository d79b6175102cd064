"""What an operator can set, as `SCHNELL_*` in the environment or in `schnell.toml`. docs/settings.md describes each."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from schnell.validation import Like

_PREFIX: Final = "SCHNELL_"
#: Names in the environment that are read elsewhere: where the settings file and models are, what tests and clients use.
OTHER_NAMES: Final = frozenset({"CONFIG", "SOAK", "API_KEY", "API_URL", "COMMIT", "BENCH_PICTURES"})
#: The classifiers that `schnell.engine.safety` knows: it imports what a command does not need to read its settings.
SAFETY_CHECKERS: Final = ("open-nsfw", "falconsai", "adamcodd")
#: A key that an operator has chosen is guarded by its length alone: its hash has no salt, and is quick to compute.
SHORTEST_PRESET_KEY: Final = 16
_UNITS: Final = ("second", "minute", "hour", "day", "month", "year")
_PLAIN_RATE: Final = re.compile(rf"[1-9][0-9]{{0,6}}/({'|'.join(_UNITS)})")
_RATE: Final = re.compile(r"\s*([0-9]+)\s*(?:/|per)?\s*(?:1\s*)?([A-Za-z]+)\s*")


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "schnell"


def _split(text: Any) -> Any:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _auto(text: Any) -> Any:
    return None if text == "auto" else text


def _no_slash(text: str | None) -> str | None:
    return text.rstrip("/") if text else None


def _without_path(text: str | None) -> str | None:
    # pages, links, cookies and the OpenAPI document name paths from the root: under a prefix they would lead elsewhere
    if text and (parts := urlsplit(text)) and (parts.path or parts.query or parts.fragment):
        raise ValueError(
            f"{text} has more than scheme, host and port: give the server a host name of its own "
            f"(such as https://schnell.{parts.hostname or 'example.org'}), a path prefix is not supported"
        )
    if text and (urlsplit(text).scheme not in {"http", "https"} or not urlsplit(text).hostname):
        raise ValueError(f"{text} must be http:// or https:// and a host")
    return text


def _check_rate(text: str | None) -> str | None:
    """Refuse a rate that could not be counted: the first request would be the one to find out."""
    if not text:
        return None
    if _PLAIN_RATE.fullmatch(text):
        return text
    from limits import parse  # here: commands start without it, whose rates are plain

    try:
        parse(text)
    except ValueError:
        found = _RATE.fullmatch(text)
        unit = next((each for each in _UNITS if found and each.startswith(found[2].lower().rstrip("s"))), None)
        nearest = f"; did you mean {found[1]}/{unit}?" if found and unit else ""
        raise ValueError(f"must look like 60/minute or 1000/day, got {text!r}{nearest}") from None
    return text


def _check_key(text: str | None) -> str | None:
    if text is not None and len(text) < SHORTEST_PRESET_KEY:
        raise ValueError(f"must have at least {SHORTEST_PRESET_KEY} characters")
    return text


def _check_safety(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in SAFETY_CHECKERS]:
        known = ", ".join(SAFETY_CHECKERS)
        raise ValueError(f"no safety checker is called {unknown[0]!r}: it must be one of {known}")
    return names


def _check_folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, and must be a folder")
    return path


# without NoDecode, pydantic-settings would read a list in the environment as JSON only
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
SafetyCheckers = Annotated[Names, AfterValidator(_check_safety)]
Rate = Annotated[str | None, AfterValidator(_check_rate)]
BootstrapKey = Annotated[str | None, AfterValidator(_check_key)]
Folder = Annotated[Path, AfterValidator(_check_folder)]
#: Left to the memory plan where it is `auto`, which is None here.
Arithmetic = Annotated[Literal["float32", "bfloat16", "float8", "int8", "int4"] | None, BeforeValidator(_auto)]
Offload = Annotated[Literal["none", "text", "blocks"] | None, BeforeValidator(_auto)]
TextEncoders = Annotated[Literal["bfloat16", "int8", "int4", "cpu"] | None, BeforeValidator(_auto)]
Decode = Annotated[Literal["whole", "tiles"] | None, BeforeValidator(_auto)]
Count = Annotated[int | None, BeforeValidator(_auto)]
Url = Annotated[str | None, AfterValidator(_no_slash)]
PublicUrl = Annotated[Url, AfterValidator(_without_path)]


#: Whether the transformer's blocks are compiled: where a GPU has all that it takes, for certain, or never.
Compile = Literal["auto", "on", "off"]


class Settings(BaseSettings):
    """The settings of one process, read once by the command line.

    Arguments go before the environment, the environment before the file. An unknown name in either is an error.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    data_dir: Folder = Field(default_factory=_data_home)
    # None: where `schnell.models.folder` says. Commands that read no settings need these folders too, so they are taken
    # from the environment there; read_settings puts there what the file says
    models_dir: Folder | None = None
    cache_dir: Folder | None = None
    model: str = "schnell-mini"
    model_aliases: Names = ()
    device: str = "auto"
    devices: Names = ()
    precision: Arithmetic = None
    lora_slots: Count = Field(None, ge=1, le=64)
    lora_rank: Count = Field(None, ge=1, le=128)
    offload: Offload = None
    text_encoders: TextEncoders = None
    batch_rows: Count = Field(None, ge=1, le=16)
    decode: Decode = None
    keep_quantized: bool = True
    compile: Compile = "auto"
    # where pictures are drawn: in this process, or on a cluster's replicas
    runner: Literal["local", "ray"] = "local"
    ray_address: str = ""
    replicas_min: int = Field(1, ge=0, le=10_000)
    replicas_max: int = Field(1, ge=1, le=10_000)
    replica_cpus: float = Field(1, gt=0, le=1024)
    replica_gpus: float | None = Field(None, ge=0, le=64)
    replica_queue_seconds: float = Field(10, gt=0)
    replica_idle_seconds: float = Field(300, ge=0)
    replica_start_seconds: float = Field(60, ge=0)
    replica_drain_seconds: float = Field(600, gt=0)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    public_url: PublicUrl = None
    database_url: str | None = None
    assets_url: str | None = None
    s3_endpoint: Url = None
    s3_public_endpoint: Url = None
    s3_region: str | None = None
    result_prefix: Annotated[str, Field(max_length=500), Like(r"[!-~]*", "must hold no spaces, and ASCII alone")] = ""
    environment: Annotated[
        str, Like(r"[A-Za-z0-9_-]{1,64}", "must be 1 to 64 letters, digits, hyphens and underscores")
    ] = "development"
    instance: str = Field("main", min_length=1, max_length=100)
    lease_seconds: float = Field(120, ge=2, le=86_400)
    bootstrap_key: BootstrapKey = None
    link_secrets: Names = ()
    # a week: S3 refuses links that are signed for longer
    link_seconds: int = Field(604_800, ge=1, le=604_800)
    retention_days: float | None = Field(None, gt=0)
    rate_limit: Rate = None
    queue_limit: int = Field(512, ge=1)
    team_queue_limit: int = Field(256, ge=1)
    price_per_picture: int = Field(200, ge=0)
    price_per_megapixel_step: int = Field(200, ge=0)
    price_per_lora: int = Field(200, ge=0)
    credit_value: float = Field(1.0, ge=0, allow_inf_nan=False)
    go_fast_lora_factor: float = Field(1.0, gt=0, le=3)
    safety: SafetyCheckers = ("open-nsfw",)
    safety_threshold: float = Field(0.8, gt=0, le=1)
    offline: bool = False
    loras_per_team: int = Field(200, ge=0)
    training_minutes: float = Field(20, ge=0, le=1440)
    lora_max_bytes: int = Field(4 * 2**30, ge=1024)
    lora_cache_bytes: int = Field(20 * 2**30, ge=0)
    lora_seconds: float = Field(600, gt=0)
    lora_fetches: int = Field(8, ge=1)
    lora_fetches_per_team: int = Field(2, ge=1)
    lora_fetch_bytes: int = Field(12 * 2**30, ge=1024)
    lora_fetch_bytes_per_team: int = Field(5 * 2**30, ge=1024)
    lora_allow_hosts: Names = ()
    lora_deny_hosts: Names = ()
    lora_private_networks: Names = ()
    lora_ca_file: Path | None = None
    hub_url: Url = "https://huggingface.co"
    hub_token: SecretStr | None = None
    civitai_url: Url = "https://civitai.com"
    civitai_token: SecretStr | None = None
    replicate_url: Url = "https://replicate.com"
    replicate_token: SecretStr | None = None
    max_body_bytes: int = Field(1_048_576, ge=1024)
    cors_origins: Names = ()
    metrics_token: str | None = None
    webhook_private: bool = False
    drain_seconds: float = Field(60, ge=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # signing in beside keys
    sign_in_rate_limit: Rate = "30/minute"
    oidc_issuer: Annotated[str, Like(r"https?://[!-~]+", "must be an http or https address")] | None = None
    oidc_client_id: str | None = None
    oidc_client_secret: SecretStr | None = None
    oidc_name: str = Field("OpenID", min_length=1, max_length=50)
    oidc_scopes: str = "openid profile email"
    oidc_role_claim: str = Field("groups", min_length=1, max_length=100)
    oidc_roles: Names = ()
    oidc_team: str | None = None
    oidc_ca_file: Path | None = None

    # proof of origin: what pictures carry, and who may check it
    watermark: bool = True
    credentials: bool = True
    credentials_name: str = Field("schnell", min_length=1, max_length=50)
    credentials_prompt: bool = True
    credentials_time: bool = False
    credentials_time_stamps: Url = None
    credentials_signing_url: Url = None
    credentials_signing_token: SecretStr | None = None
    verify_rate_limit: Rate = "30/minute"
    verify_max_bytes: int = Field(20 * 2**20, ge=1024)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's form
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's form
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources in order of precedence: arguments, environment, file; `.env` and secret files are not read.

        Raises:
            ValueError: `SCHNELL_CONFIG` names a file that does not exist.
        """
        named = os.environ.get("SCHNELL_CONFIG")
        if named and not Path(named).is_file():
            raise ValueError(f"SCHNELL_CONFIG names a file that is not there: {named}")
        file = Path(named or "schnell.toml")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    @classmethod
    def unknown_names(cls) -> list[str]:
        """The `SCHNELL_*` names in the environment that nothing reads: most often misspelt ones."""
        known = {name.upper() for name in cls.model_fields} | OTHER_NAMES
        given = (name.upper().removeprefix(_PREFIX) for name in os.environ if name.upper().startswith(_PREFIX))
        return sorted(name for name in given if name not in known)

    @classmethod
    def nearest_name(cls, name: str) -> str | None:
        """The setting that a misspelt name most probably means, as it is written in the environment."""
        known = {each.upper() for each in cls.model_fields}
        return next((_PREFIX + each for each in difflib.get_close_matches(name.upper(), known, 1, 0.6)), None)

    @property
    def base_url(self) -> str:
        """The URL at which clients reach this server, without a slash at its end."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - a name for "everywhere"
        # an IPv6 address stands in brackets, or its colons would look like a port's
        return self.public_url or f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
