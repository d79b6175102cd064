import asyncio
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import LoraDownloadError, LoraSourceError
from schnell.outbound.addresses import Address, AddressPolicy, CheckedTransport

WRAPPERS: dict[str, Callable[[IPv4Address], IPv6Address]] = {
    "mapped": lambda inner: IPv6Address(0xFFFF << 32 | int(inner)),
    "6to4": lambda inner: IPv6Address(0x2002 << 112 | int(inner) << 80 | 1),
    "NAT64": lambda inner: IPv6Address(int(IPv6Address("64:ff9b::")) | int(inner)),
    "local NAT64": lambda inner: IPv6Address(int(IPv6Address("64:ff9b:1::")) | int(inner)),
    # the client's address is stored inverted
    "Teredo": lambda inner: IPv6Address(0x20010000 << 96 | 0x01010101 << 64 | int(inner) ^ 0xFFFFFFFF),
}


def is_refused(policy: AddressPolicy, address: Address) -> bool:
    try:
        policy.check_address("host.test", address)
    except LoraSourceError:
        return True
    return False


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "10.0.0.1",
        "172.16.5.5",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - a case, not a binding
        "255.255.255.255",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "ff02::1",
        # what Python's flags let pass
        "192.88.99.1",
        "192.0.0.9",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "198.18.0.1",
        "203.0.113.1",
        "240.0.0.1",
        "fec0::1",
        "feff::1",
        "100::1",
        "2001:2::1",
        "2001:20::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "2620:4f:8000::1",
        "64:ff9b:1::7f00:1",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(LoraSourceError, match="not a public address"):
        AddressPolicy().check_address("host.test", ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_reached(address: str) -> None:
    AddressPolicy().check_address("host.test", ip_address(address))


def test_a_named_private_network_is_reached_and_no_other() -> None:
    policy = AddressPolicy(private_networks=("10.1.0.0/16",))
    policy.check_address("hub.internal", ip_address("10.1.2.3"))
    with pytest.raises(LoraSourceError):
        policy.check_address("hub.internal", ip_address("10.2.2.3"))


def test_deny_goes_before_allow_and_both_hold_for_subdomains() -> None:
    policy = AddressPolicy(allow=("example.com",), deny=("evil.example.com",))
    policy.check_host("cdn.example.com")
    for host in ("evil.example.com", "a.evil.example.com", "badexample.com", "example.org"):
        with pytest.raises(LoraSourceError):
            policy.check_host(host)


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.1"):
        AddressPolicy(private_networks=("10.1.0.0/99",))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@given(inner=st.ip_addresses(v=4) | st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="127.0.0.0/8"))
def test_an_address_that_wraps_another_is_judged_as_that(wrapper: str, inner: IPv4Address) -> None:
    wrapped = WRAPPERS[wrapper](inner)
    for policy in (AddressPolicy(), AddressPolicy(private_networks=("10.1.0.0/16",))):
        assert is_refused(policy, wrapped) == is_refused(policy, inner)


@given(st.ip_addresses())
def test_no_address_that_the_registries_call_private_is_reached(address: Address) -> None:
    closed = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    assert is_refused(AddressPolicy(), address) or not closed


@pytest.mark.parametrize("host", ["example.com", "EXAMPLE.com", "cdn.Example.COM", "example.com."])
def test_hosts_are_compared_without_case_or_final_dot(host: str) -> None:
    AddressPolicy(allow=("Example.com",)).check_host(host)
    with pytest.raises(LoraSourceError, match="does not fetch from"):
        AddressPolicy(deny=("example.COM",)).check_host(host)


class Recorder(httpx.AsyncBaseTransport):
    """Answers every request, but for connections to `dead` addresses."""

    def __init__(self, *dead: str) -> None:
        self.sent: list[httpx.Request] = []
        self._dead = dead

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        if request.url.host in self._dead:
            raise httpx.ConnectError("refused")
        return httpx.Response(200)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Let every name lead to these addresses; returns the names that were asked for."""
    asked: list[str] = []

    def resolve(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


async def get(recorder: Recorder, url: str, policy: AddressPolicy | None = None) -> httpx.Response:
    async with httpx.AsyncClient(transport=CheckedTransport(policy or AddressPolicy(), recorder)) as client:
        return await client.get(url)


async def test_the_connection_goes_to_the_checked_address_and_the_certificate_to_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name resolves once; what it would resolve to the next time does not matter."""
    asked, recorder = resolve_to(monkeypatch, "93.184.216.34"), Recorder()
    await get(recorder, "https://hub.test:8443/x?y=1")
    [sent] = recorder.sent
    assert asked == ["hub.test"]
    assert str(sent.url) == "https://93.184.216.34:8443/x?y=1"
    assert sent.headers["host"] == "hub.test:8443"
    assert sent.extensions["sni_hostname"] == "hub.test"


async def test_the_next_address_is_tried_where_one_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "1.1.1.1", "8.8.8.8", "1.1.1.1", "9.9.9.9")
    recorder = Recorder("1.1.1.1")
    assert (await get(recorder, "https://hub.test/x")).status_code == 200
    assert [request.url.host for request in recorder.sent] == ["1.1.1.1", "8.8.8.8"]
    with pytest.raises(httpx.ConnectError):
        await get(Recorder("1.1.1.1", "8.8.8.8", "9.9.9.9"), "https://hub.test/x")


@pytest.mark.parametrize("addresses", [["93.184.216.34", "10.0.0.1"], ["10.0.0.1", "93.184.216.34"], ["fe80::1%eth0"]])
async def test_a_name_with_one_address_that_is_not_public_is_connected_to_nowhere(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    resolve_to(monkeypatch, *addresses)
    recorder = Recorder()
    with pytest.raises(LoraSourceError, match="not a public address"):
        await get(recorder, "https://hub.test/x")
    assert recorder.sent == []


@pytest.mark.parametrize(
    ("url", "policy", "complaint"),
    [
        ("http://hub.test/x", AddressPolicy(), "only https"),
        ("https://hub.test/x", AddressPolicy(deny=("hub.test",)), "does not fetch from hub.test"),
        ("https://hub.test/x", AddressPolicy(allow=("other.test",)), "fetches only from other.test"),
        ("https://127.0.0.1/x", AddressPolicy(), "not a public address"),
        ("https://[::1]/x", AddressPolicy(), "not a public address"),
        ("https://0x7f000001/x", AddressPolicy(), "not a public address"),
        ("https://2130706433/x", AddressPolicy(), "not a public address"),
    ],
)
async def test_what_may_not_be_called_is_connected_to_nowhere(url: str, policy: AddressPolicy, complaint: str) -> None:
    recorder = Recorder()
    with pytest.raises(LoraSourceError, match=complaint):
        await get(recorder, url, policy)
    assert recorder.sent == []


async def test_a_silent_name_server_is_given_up_and_keeps_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        let_go.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("schnell.outbound.addresses._RESOLVE_SECONDS", 0.2)
    asking = [get(Recorder(), f"https://{number}.test/x") for number in range(20)]
    try:
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(each) for each in answers} == {LoraDownloadError}
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"
    finally:
        let_go.set()


async def test_a_name_that_leads_nowhere_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(LoraDownloadError, match=r"the host nowhere\.test cannot be found"):
        await get(Recorder(), "https://nowhere.test/x")
