"""The address of a client: the peer's, or the one that a trusted proxy forwards.

`TURNOUT_TRUSTED_PROXIES` names the proxies. Their `X-Forwarded-For` is read from the right up to
the first address that is not a trusted proxy; other peers' is ignored. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from turnout.service.domain.errors import SetupError

_IPV6_HOST_BITS = 64


class Proxies:
    """The trusted proxies; raises `SetupError` for what is not an address or network."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._networks = _networks(addresses)

    def trusts(self, address: str) -> bool:
        """Whether this is the address of a trusted proxy."""
        if not self._networks:
            return False
        found = _read(address)
        return found is not None and any(found in network for network in self._networks)

    def client(
        self, peer: tuple[str, int] | None, headers: Mapping[str, Sequence[bytes]]
    ) -> str | None:
        """Return the client's address: the peer's, or the one that trusted proxies forward."""
        if peer is None:
            return None
        address = peer[0]
        if not self.trusts(address):
            return address
        hops = b",".join(headers.get("x-forwarded-for", ())).decode("latin-1").split(",")
        for hop in reversed([hop.strip() for hop in hops]):
            if _read(hop) is None:
                break
            address = hop
            if not self.trusts(hop):
                break
        return address


def client_network(address: str) -> str:
    """Return the network that counts as one client: an IPv4 address, or the /64 of an IPv6 one."""
    found = _read(address) if ":" in address else None
    if found is None:
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    return str(ip_network((int(found), 128 - _IPV6_HOST_BITS), strict=False))


def _read(address: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _networks(addresses: Sequence[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(address, strict=False) for address in addresses)
    except ValueError as error:
        raise SetupError(
            f'TURNOUT_TRUSTED_PROXIES: {error}; write addresses or networks: ["10.0.0.0/8"]'
        ) from None
