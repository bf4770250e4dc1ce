"""The names by which the demo may be asked, and by whom, by ``Host``, ``Origin`` and a browser's metadata.

A browser that has the demo open also opens other pages. Those can send requests here: under a name of their own that
leads to this machine (DNS rebinding), or across sites (a form, a script, a frame). Neither is let in.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers

_PLACE = re.compile(r"(?P<name>\[[0-9a-f:.%]+\]|[^\s\[\]:/?#@\\,]+)(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}

Place = tuple[str, int | None]  # a name in one spelling, and a port where one is given


def parse_place(text: str) -> Place | None:
    """Read ``name``, ``name:port`` or ``[address]:port``; None where it is no such thing."""
    match = _PLACE.fullmatch(text)
    if match is None:
        return None
    name = plain(match["name"])
    if not name or name.startswith("["):
        return None
    return name, int(match["port"]) if match["port"] else None


def plain(name: str) -> str:
    """A name in one spelling: lower case, no final dot, an address in its shortest form and without brackets."""
    name = name.lower().removesuffix(".")
    return str(_address(name) or name)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a name is; the IPv4 one where it is wrapped in IPv6."""
    try:
        address = ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class Names:
    """The names of this server.

    Args:
        hosts: where the user has it listen, and the address of that. Of a wildcard address, any address and this
            machine's name are meant: a rebound name is neither.
        port: at which it listens.
        others: names that a proxy in front is asked by, ``name`` (any port) or ``name:port``.

    Raises:
        ValueError: one of ``others`` is no name.
    """

    def __init__(self, hosts: Iterable[str], port: int, others: Iterable[str] = ()) -> None:
        self.port = port
        self.own = {"localhost", *map(plain, hosts)}
        self.any_address = any(address.is_unspecified for address in map(_address, self.own) if address)
        if self.any_address:
            self.own.add(plain(socket.gethostname()))
        self.others: set[Place] = set()
        for text in others:
            if (place := parse_place(text)) is None:
                raise ValueError(f"{text!r} is no name of a server: give NAME or NAME:PORT, without http:// and a path")
            self.others.add(place)

    def refusal(self, method: str, headers: Headers) -> str | None:
        """Say in a sentence why a request comes from a stranger; None: it does not."""
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return f"A request names the host that it asks once; this one did so {len(hosts)} times."
        forwarded = [name.strip() for value in headers.getlist("x-forwarded-host") for name in value.split(",")]
        for host in hosts + forwarded:
            if not self.has_host(host):
                return (
                    f"This server is not known as {host[:100]!r}: open it at the address that it printed, or start it "
                    "with that name among those of its proxy."
                )
        for origin in headers.getlist("origin"):
            if not self.has_origin(origin):
                return f"A page of {origin[:100]!r} may not ask this server: only its own page may."
        opened = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        opened = opened and headers.get("sec-fetch-dest") == "document"  # a link was followed, into no frame
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opened:
            return "A page of another site may not ask this server: only its own page may."
        return None

    def has_host(self, value: str) -> bool:
        """Whether a ``Host`` header names this server."""
        place = parse_place(value)
        if place is None:
            return False
        name, port = place
        ports = {port} if port else {*_PORTS.values()}  # no port: that of the scheme, which a Host does not tell
        if any((name, one) in self.others for one in {None, *ports}):
            return True
        return self._is_own(name) and (port or _PORTS["http"]) == self.port

    def has_origin(self, value: str) -> bool:
        """Whether an ``Origin`` header is that of this server's own page."""
        scheme, _, rest = value.partition("://")
        place = parse_place(rest) if scheme in _PORTS else None
        if place is None:
            return False
        name, port = place[0], place[1] or _PORTS[scheme]
        if {(name, None), (name, port)} & self.others:
            return True
        return self._is_own(name) and port == self.port

    def _is_own(self, name: str) -> bool:
        address = _address(name)
        return name in self.own or (address is not None and (address.is_loopback or self.any_address))
