"""Which network addresses a caller's URL may lead to, for LoRAs and webhooks alike: public ones, and the operator's.

A URL that a caller names could make this server read from its own network, or write to it (server-side request
forgery). See docs/decisions/0011.
"""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import httpx

from schnell.daemon_threads import DaemonThreads
from schnell.errors import LoraDownloadError, LoraSourceError

Address = IPv4Address | IPv6Address
#: What a NAT64 gateway translates to the IPv4 address in the last 32 bits (RFC 6052, and RFC 8215 for local use).
#: Python's `ipaddress` unwraps mapped, 6to4 and Teredo addresses, but not these.
_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_LOW_32_BITS: Final = 2**32 - 1
#: Ranges of IANA's special-purpose registries that are not for hosts of the public internet, and that Python's flags
#: (of the oldest version that we run on) let pass.
#: https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry
_SPECIAL: Final = tuple(
    map(
        ip_network,
        (
            *("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
            *("100::/64", "100:0:0:1::/64", "2001::/23", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fec0::/10"),
        ),
    )
)
#: Names are asked for in threads of their own, which the rest of the server does not wait for: the system's resolver
#: takes half a minute to give a silent name server up.
_RESOLVERS: Final = DaemonThreads(32, "resolver")
_RESOLVE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which hosts and addresses may be called. `allow` (empty: all) and `deny` are host names, with their subdomains.

    `private_networks` are ranges of addresses, such as `10.1.0.0/16`, that may be called although they are not public.

    Raises:
        ValueError: one of `private_networks` is no range of addresses.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    private_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # read here so that a wrong one fails the server's start, and not its first download
        for network in self.private_networks:
            ip_network(network, strict=False)

    def check_host(self, host: str) -> None:
        """Check a host's name against the operator's lists; `deny` goes before `allow`.

        Raises:
            LoraSourceError: they refuse it.
        """
        if _listed(host, self.deny):
            raise LoraSourceError(f"this server does not fetch from {host}")
        if self.allow and not _listed(host, self.allow):
            raise LoraSourceError(f"this server fetches only from {', '.join(self.allow)}, not from {host}")

    def check_address(self, host: str, address: Address) -> None:
        """Check one address of a host.

        Raises:
            LoraSourceError: it is private, loopback, link-local or otherwise not public, and in no private network that
                the operator has named.
        """
        embedded = _embedded(address)
        if any(embedded in ip_network(network, strict=False) for network in self.private_networks):
            return
        # `is_global` alone is true of multicast and of some reserved addresses
        reserved = embedded.is_multicast or embedded.is_reserved or embedded.is_unspecified
        if not embedded.is_global or reserved or any(embedded in network for network in _SPECIAL):
            raise LoraSourceError(f"{host} leads to {address}, which is not a public address")


def _listed(host: str, names: Sequence[str]) -> bool:
    host = host.lower().rstrip(".")
    return any(host == name.lower() or host.endswith(f".{name.lower()}") for name in names)


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only wraps it (mapped, 6to4, Teredo, NAT64), or the address itself.

    `::ffff:127.0.0.1` leads to this machine although it is no loopback address of IPv6.
    """
    if isinstance(address, IPv4Address):
        return address
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & _LOW_32_BITS)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)


class CheckedTransport(httpx.AsyncBaseTransport):
    """An httpx transport that resolves a request's host, checks all its addresses, and connects to one of them.

    A redirect is a request of its own, and is checked as the first.
    """

    def __init__(self, policy: AddressPolicy, inner: httpx.AsyncBaseTransport) -> None:
        self._policy = policy
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the first of its host's addresses that takes the connection.

        Raises:
            LoraSourceError: the scheme is not https, or the host or one of its addresses is refused.
            LoraDownloadError: the host has no address.
            httpx.TransportError: no connection, or it broke.
        """
        host = request.url.host
        if request.url.scheme != "https":
            raise LoraSourceError(f"only https addresses are fetched, not {request.url.scheme}://{host}")
        self._policy.check_host(host)
        # all are checked before any is tried: a name that leads to a public and to a private address is always refused,
        # whichever of the two would have answered
        addresses = await _resolve(host, request.url.port or 443)
        for address in addresses:
            self._policy.check_address(host, address)
        for address in addresses[:-1]:
            try:
                return await self._send(request, address)
            except httpx.ConnectError:
                continue
        return await self._send(request, addresses[-1])

    async def _send(self, request: httpx.Request, address: Address) -> httpx.Response:
        # connected to by number: httpx would resolve the name a second time, and whoever serves the name could then
        # answer with another address than the one that was checked (DNS rebinding). The Host header is in `headers`
        # already; the certificate is checked against the name in `sni_hostname`
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=str(address)),
            headers=request.headers,
            stream=request.stream,
            extensions=dict(request.extensions) | {"sni_hostname": request.url.host},
        )
        return await self._inner.handle_async_request(pinned)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


async def _resolve(host: str, port: int) -> list[Address]:
    """Every address of a host, in the resolver's order. Raises LoraDownloadError where it has none."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await _RESOLVERS.run(look_up)
    except (OSError, UnicodeError) as error:  # a TimeoutError is an OSError, too
        raise LoraDownloadError(f"the host {host} cannot be found") from error
    # without the zone of a link-local address (`fe80::1%eth0`)
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
    if not texts:
        raise LoraDownloadError(f"the host {host} cannot be found")
    return [ip_address(text) for text in texts]
