"""A signing service that keeps an operator's private key: it is sent what is to be signed, and answers the signature.

The form is that of c2pa-rs's remote signer: `POST` of the bytes, the signature as the answer's body.
"""

from dataclasses import dataclass

import httpx
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from schnell.errors import CredentialsError

#: Half of an ECDSA signature, in bytes, by C2PA's name of the algorithm.
_HALF_BYTES = {"es256": 32, "es384": 48, "es512": 66}
_TIMEOUT_SECONDS = 10
_TRIES = 2


@dataclass(frozen=True, slots=True)
class SigningService:
    """Asks `url` for each signature, with `token` as a bearer token where there is one."""

    url: str
    token: str | None = None

    def sign(self, data: bytes, algorithm: str) -> bytes:
        """The signature of `data`, which is hashed by the service, in the form that COSE has (RFC 9053).

        Raises:
            CredentialsError: the service does not answer, or refuses.
        """
        signature = self._ask(data)
        # key services such as a cloud's answer ECDSA in DER; COSE wants both numbers at their full length
        if algorithm in _HALF_BYTES and len(signature) != 2 * _HALF_BYTES[algorithm]:
            return _from_der(signature, _HALF_BYTES[algorithm])
        return signature

    def _ask(self, data: bytes) -> bytes:
        headers = {"content-type": "application/octet-stream"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        for left in reversed(range(_TRIES)):
            try:
                answer = httpx.post(self.url, content=data, headers=headers, timeout=_TIMEOUT_SECONDS)
                answer.raise_for_status()
            except (httpx.HTTPError, httpx.InvalidURL) as cause:
                # a service that has said no says no again
                if left and not (isinstance(cause, httpx.HTTPStatusError) and cause.response.is_client_error):
                    continue
                raise CredentialsError(f"the signing service gives no signature: {_reason(cause)}") from cause
            return answer.content
        raise AssertionError  # the last try returns or raises


def _reason(cause: Exception) -> str:
    """What went wrong, without the address: it may hold a password."""
    if isinstance(cause, httpx.HTTPStatusError):
        return f"it answered {cause.response.status_code}"
    return type(cause).__name__


def _from_der(signature: bytes, half: int) -> bytes:
    try:
        return b"".join(number.to_bytes(half, "big") for number in decode_dss_signature(signature))
    except (ValueError, OverflowError) as cause:
        raise CredentialsError("the signing service's answer is no ECDSA signature of this key") from cause
