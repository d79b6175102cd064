"""Sign-in by an OpenID provider (authorization code with PKCE), over Authlib: any issuer, roles from a claim."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from joserfc.errors import JoseError

from schnell.errors import ForbiddenError, SignInError

_log = logging.getLogger(__name__)
#: Signatures that only the provider can make. `none`, and those with a shared secret, are not among them.
_ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
)
#: Claims that hold several values in one text, with spaces between.
_SPACED: Final = frozenset({"scope", "scp"})
_SECONDS: Final = 10.0
#: From the mightiest to the least: who has several, has the first of them.
_RANKS: Final = ("OPERATOR", "ADMIN", "MEMBER")


@dataclass(frozen=True, slots=True)
class OpenIdConfig:
    """A provider, as the operator has set it. `name` is what people know it by.

    `roles` says which values of the claim `role_claim` make somebody what: OPERATOR, ADMIN or MEMBER. Where there are
    any, others are not let in. `team`: the team that newcomers join; without one, newcomers need an invite.
    """

    issuer: str
    client_id: str
    client_secret: str | None = None
    name: str = "OpenID"
    scopes: str = "openid profile email"
    role_claim: str = "groups"
    roles: Mapping[str, str] = field(default_factory=dict)
    team: str | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """What one browser's way through a sign-in must come back with, and where it goes then."""

    state: str
    nonce: str
    code_verifier: str
    next: str = "/"
    invite: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signed in, as the provider says. `rank`: OPERATOR, ADMIN, MEMBER, or None where no claim decides it."""

    issuer: str
    subject: str
    name: str
    email: str | None
    rank: str | None


def _reason(cause: Exception) -> str:
    # codes and tokens stand in addresses and bodies: the kind of failure and its first words are enough for an operator
    return f"{type(cause).__name__}: {str(cause).split('?')[0][:200]}"


def _texts_of(name: str, claim: Any) -> list[str]:
    """The values of a claim as text: of a list each, of an object its keys, of anything else itself, as JSON has it."""
    if isinstance(claim, str):
        # a group may have a space in its name; scopes (RFC 6749, 3.3) are what spaces tell apart
        return claim.split() if name in _SPACED else [claim]
    if isinstance(claim, list | tuple | Mapping):
        return [each if isinstance(each, str) else json.dumps(each) for each in claim]
    return [] if claim is None else [json.dumps(claim)]


class OpenIdProvider:
    """A provider that people may sign in with; `redirect_uri` is the address here that it sends them back to."""

    def __init__(self, config: OpenIdConfig, redirect_uri: str) -> None:
        self.config = config
        self._redirect_uri = redirect_uri
        arguments: dict[str, Any] = {"scope": config.scopes, "code_challenge_method": "S256", "timeout": _SECONDS}
        if config.ca_file:
            arguments["verify"] = str(config.ca_file)
        if config.client_secret is None:
            arguments["token_endpoint_auth_method"] = "none"  # noqa: S105 - a method's name
        self._app: Any = OAuth().register(
            name="openid",
            client_id=config.client_id,
            client_secret=config.client_secret,
            server_metadata_url=f"{config.issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs=arguments,
        )

    async def begin(self, next_path: str, invite: str | None) -> tuple[str, Flow]:
        """The address that a browser goes to, and what to keep for when it comes back.

        Raises:
            SignInError: the provider does not answer.
        """
        try:
            await self._load()
            made = await self._app.create_authorization_url(self._redirect_uri)
        except (httpx2.HTTPError, AuthlibBaseError, RuntimeError, ValueError) as cause:
            _log.warning("the OpenID provider does not answer as it should: %s", _reason(cause))
            raise SignInError(f"{self.config.name} does not answer as it should; try again later") from cause
        return str(made["url"]), Flow(made["state"], made["nonce"], made["code_verifier"], next_path, invite)

    async def finish(self, flow: Flow, code: str) -> Identity:
        """Who came back with this code.

        Raises:
            SignInError: the provider refuses the code, or what it says is not to be trusted.
            ForbiddenError: the claim gives them no role here.
        """
        try:
            claims = await self._exchange(flow, code)
        except (httpx2.HTTPError, AuthlibBaseError, JoseError, RuntimeError, ValueError, KeyError) as cause:
            _log.warning("a sign-in with the OpenID provider failed: %s", _reason(cause))
            raise SignInError(f"the sign-in with {self.config.name} did not succeed; try again") from cause
        subject = str(claims["sub"])
        name = next(
            (str(claims[each]) for each in ("name", "preferred_username", "email") if claims.get(each)), subject
        )
        email = str(claims["email"])[:320] if claims.get("email") else None
        return Identity(self.config.issuer, subject[:255], name[:200], email, self._rank(claims))

    async def _load(self) -> None:
        metadata = await self._app.load_server_metadata()
        # OpenID Connect Discovery 1.0, 4.3: one provider must not speak for another
        if metadata.get("issuer") != self.config.issuer:
            raise RuntimeError(f"the provider calls itself {metadata.get('issuer')!r}")
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        metadata["id_token_signing_alg_values_supported"] = [each for each in offered if each in _ALGORITHMS]

    async def _exchange(self, flow: Flow, code: str) -> dict[str, Any]:
        await self._load()
        token = await self._app.fetch_access_token(
            redirect_uri=self._redirect_uri, code=code, code_verifier=flow.code_verifier
        )
        # the issuer and the client that the token is for are compared here, its times, nonce and signature by Authlib
        expected = {
            "iss": {"essential": True, "value": self.config.issuer},
            "aud": {"essential": True, "value": self.config.client_id},
        }
        claims = await self._app.parse_id_token(token, nonce=flow.nonce, claims_options=expected)
        if claims is None:
            raise RuntimeError("the provider gave no ID token")
        told = dict(claims)
        if self._app.server_metadata.get("userinfo_endpoint"):
            # many providers give groups and names only here; it must be about the same person (OpenID Core, 5.3.2)
            more = dict(await self._app.userinfo(token=token))
            told = more | told if more.get("sub") == told["sub"] else told
        return told

    def _rank(self, claims: Mapping[str, Any]) -> str | None:
        if not self.config.roles:
            return None
        values = _texts_of(self.config.role_claim, claims.get(self.config.role_claim))
        ranks = {self.config.roles[each] for each in values if each in self.config.roles}
        rank = next((each for each in _RANKS if each in ranks), None)
        if rank is None:
            who = claims.get("email") or claims["sub"]
            raise ForbiddenError(f"{who} has no role on this server; ask those who manage {self.config.name}")
        return rank
