"""Which addresses of the network are public: for requests to addresses that others have named.

What is not known to be public is refused: private, local and reserved networks, addresses that
carry another one (IPv4 in IPv6, NAT64, 6to4, Teredo, ISATAP), and those under which clouds tell
machines their secrets. Not here: looking names up, and connecting.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_NOT_PUBLIC_4 = tuple(
    ip_network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # a cloud's own address for its machines
    )
)  # fmt: skip
_PUBLIC_6 = ip_network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ip_network(each) for each in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
"""The middle of an address in which an IPv4 address is hidden."""


def is_public(text: str) -> bool:
    """Whether an address, as a resolver gives it, is one of the public internet."""
    try:
        address = ip_address(text)
    except ValueError:  # with a zone, such as fe80::1%eth0: a local one
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return _is_public_6(address)


def _is_public_6(address: IPv6Address) -> bool:
    if address.scope_id is not None or address not in _PUBLIC_6:
        return False
    hides = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    return not hides and not any(address in network for network in _NOT_PUBLIC_6)
