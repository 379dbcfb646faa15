"""Which addresses we never connect to: the ones behind which a cloud hands out the machine's own credentials.

Checked on the address that is about to be connected to, after every resolution, so that no spelling of it and no name
that resolves to it gets through. Loopback and private networks are fine: models run there.
"""

from __future__ import annotations

import ipaddress

# Metadata services that are not link-local: AWS over IPv6, Google over IPv6, Alibaba, Azure's wire server, Oracle.
_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")  # IPv4-compatible IPv6, long obsolete and still routed by some stacks


def forbidden(host: str) -> bool:
    """Whether this IP address, as a socket would spell it, is link-local or a metadata service in any disguise."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0].strip("[]"))
    except ValueError:
        return False  # a name: what it resolves to is asked about separately
    return any(inner.is_link_local or inner in _METADATA for inner in _faces(address))


def _faces(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The address, and every IPv4 address that it carries inside."""
    faces: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            faces.append(address.ipv4_mapped)
        if address.sixtofour is not None:
            faces.append(address.sixtofour)
        if address.teredo is not None:
            faces.append(address.teredo[1])
        if address in _NAT64 or address in _COMPATIBLE:
            faces.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return faces
