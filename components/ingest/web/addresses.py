"""Addresses of the web: which may be asked at all, and where their hosts are."""

import ipaddress
import socket

from urllib3.util import Url, parse_url

_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")  # Python 3.11 takes most of it for public


class Skip(Exception):
    """An address that is left out for good; `status` is that of its answer, if there was one."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Later(Exception):
    """An address that may answer another time; `again`: even within this run."""

    def __init__(self, reason: str, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


def parse(url: str) -> Url:
    """The parts of an address of the web.

    Raises:
        Skip: it is none, or one with credentials in it.
        ValueError: it can't be read.
    """
    parsed = parse_url(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Skip("no address of the web (http://… or https://…)")
    if parsed.auth is not None:
        raise Skip("holds a user name; addresses with credentials are refused")
    return parsed


def resolve(url: Url, *, private: bool) -> list[str]:
    """The IP addresses of a host, to be connected to as they are: asked again, its name may give others.

    Raises:
        Skip: there is no such host, or one of them isn't public; `private` allows that.
        Later: the name can't be resolved now.
        ValueError: it is no name.
    """
    host = (url.host or "").strip("[]")
    try:
        found = socket.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Later(f"the name {host} can't be resolved now") from None
        raise Skip(f"there is no host {host}") from None
    ips = list(dict.fromkeys(str(address[0]) for *_, address in found))
    bad = [ip for ip in ips if not private and not is_public(ip)]
    if bad:
        raise Skip(
            f"{host} is at {bad[0]}, which is no public address; `private: true` of the source in params.yaml allows it"
        )
    return ips


def is_public(address: str) -> bool:
    """Whether it can only be an IP address of the public Internet; one that carries another in it is not."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and ip not in _PROTOCOLS
    if ip in _NAT64:  # how a network without IPv4 reaches it
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip in _UNICAST and ip.is_global and ip.sixtofour is None and ip.teredo is None
