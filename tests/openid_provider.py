"""A real OpenID provider, from a package, in a process of its own: discovery, PKCE, signed ID tokens, userinfo."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from s3_servers import free_port

_RUN = (
    "import sys, os; os.environ['AUTHLIB_INSECURE_TRANSPORT'] = '1'\n"
    "import oidc_provider_mock as provider, werkzeug.serving as serving\n"
    "serving.run_simple('127.0.0.1', int(sys.argv[1]), provider.app(require_nonce=True), threaded=True)"
)


class OpenIdIssuer:
    """The provider. People sign in there by typing who they are: it asks for no password."""

    def __init__(self, url: str) -> None:
        self.url = url

    def know(self, subject: str, **claims: object) -> None:
        """What it says of somebody from now on."""
        httpx.put(f"{self.url}/users/{subject}", json=claims, timeout=30).raise_for_status()


@contextmanager
def run_issuer() -> Iterator[OpenIdIssuer]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    issuer = OpenIdIssuer(f"http://127.0.0.1:{port}")
    try:
        _await(process, issuer)
        yield issuer
    finally:
        process.terminate()
        process.wait(30)


def _await(process: "subprocess.Popen[bytes]", issuer: OpenIdIssuer) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError("the OpenID provider ended at its start")
        try:
            if httpx.get(f"{issuer.url}/.well-known/openid-configuration", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(issuer.url)
