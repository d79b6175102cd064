from ipaddress import ip_address

import pytest

from schnell.errors import LoraSourceError
from schnell.outbound.addresses import AddressPolicy


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
