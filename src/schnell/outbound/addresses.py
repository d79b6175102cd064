"""Which network addresses a caller's URL may lead to: public ones, and those that the operator names."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import httpx

from schnell.errors import LoraDownloadError, LoraSourceError

Address = IPv4Address | IPv6Address
_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_LOW_32_BITS: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Hosts that may be fetched from. `allow` (empty: all) and `deny` hold host names, each with its subdomains.

    `private_networks` are address ranges, as `10.1.0.0/16`, that may be reached although they are not public.

    Raises:
        ValueError: a network that is none.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    private_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for network in self.private_networks:
            ip_network(network, strict=False)

    def check_host(self, host: str) -> None:
        """Raises LoraSourceError for a host that the operator's lists refuse."""
        if _listed(host, self.deny):
            raise LoraSourceError(f"this server does not fetch from {host}")
        if self.allow and not _listed(host, self.allow):
            raise LoraSourceError(f"this server fetches only from {', '.join(self.allow)}, not from {host}")

    def check_address(self, host: str, address: Address) -> None:
        """Raises LoraSourceError for an address that is private, loopback, link-local, or otherwise not public."""
        embedded = _embedded(address)
        if any(embedded in ip_network(network, strict=False) for network in self.private_networks):
            return
        if not embedded.is_global or embedded.is_multicast or embedded.is_reserved or embedded.is_unspecified:
            raise LoraSourceError(f"{host} leads to {address}, which is not a public address")


def _listed(host: str, names: Sequence[str]) -> bool:
    host = host.lower().rstrip(".")
    return any(host == name.lower() or host.endswith(f".{name.lower()}") for name in names)


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only wraps it (mapped, 6to4, NAT64), or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & _LOW_32_BITS)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)


class CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to the very address that was checked, so a name that resolves differently the next time gains nothing.

    The certificate is still checked against the host's name. Proxies of the environment are not used: they would
    resolve the name themselves.
    """

    def __init__(self, policy: AddressPolicy, inner: httpx.AsyncBaseTransport) -> None:
        self._policy = policy
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Resolve, check every address, and send to the first that answers.

        Raises:
            LoraSourceError: the scheme is not https, or the host or one of its addresses is refused.
            LoraDownloadError: the host has no address.
        """
        host = request.url.host
        if request.url.scheme != "https":
            raise LoraSourceError(f"only https addresses are fetched, not {request.url.scheme}://{host}")
        self._policy.check_host(host)
        addresses = await resolve(host, request.url.port or 443)
        for address in addresses:
            self._policy.check_address(host, address)
        for address in addresses[:-1]:
            try:
                return await self._send(request, address)
            except httpx.ConnectError:
                continue
        return await self._send(request, addresses[-1])

    async def _send(self, request: httpx.Request, address: Address) -> httpx.Response:
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


async def resolve(host: str, port: int) -> list[Address]:
    """Every address of a host. Raises LoraDownloadError where it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LoraDownloadError(f"the host {host} cannot be found") from error
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
    return [ip_address(text) for text in texts]
