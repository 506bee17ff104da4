"""What the host of a URL says of where it is."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether it is this machine, so that what is sent there goes over no network."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
