"""Who may ask: the host, the origin and the token of each request, and the headers of each answer.

A page elsewhere cannot read anything: without its name in ``cors`` no answer says that it may. It cannot write
anything: its Origin is refused, and the cookie does not go along. A name of its own that leads to this machine is no
Host that is known here.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from cbir_faiss.serve.problems import Problem

OPEN = frozenset({"/healthz", "/readyz"})
"""Nothing of a collection is in their answers."""
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::(\d{1,5}))?")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Guard:
    """host, port: where it listens. names: other names that it is known by, behind a proxy. cors: origins whose pages
    may ask. token: of programs, and of whoever types it. link: opens the page once."""

    host: str
    port: int
    token: str
    names: frozenset[str] = frozenset()
    cors: frozenset[str] = frozenset()
    link: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def __post_init__(self) -> None:
        self._session = secrets.token_urlsafe(32)
        self._linked = False

    @property
    def cookie(self) -> str:
        """Cookies of one host are shared by its ports."""
        return f"cbir-{self.port}"

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Raises Problem: 403 for a foreign Host or Origin, 401 without a token."""
        if path in OPEN:
            return
        host = headers.get("host", "")
        if not self._is_known(host):
            raise Problem(403, f"Host '{host[:100]}' is not this server: --name lets it be called so")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host) and origin not in self.cors:
            raise Problem(403, f"Origin '{origin[:100]}' is not this server: --cors lets its pages ask")
        fetched = headers.get("sec-fetch-site", "none")
        if method not in _READING and fetched not in ("same-origin", "none") and origin not in self.cors:
            raise Problem(403, "only pages of this server may change anything")

    def check_token(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises Problem (401) without the cookie or the bearer's token."""
        if path not in OPEN and not (self._has_cookie(headers) or self._has_bearer(headers)):
            raise Problem(
                401,
                "no token: open the link that cbir serve printed, or send Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    def enter(self, query: str, headers: Mapping[str, str]) -> str | None:
        """The cookie for whoever comes by ``/?token=``, or has it; None where there is no token in the query.

        Raises:
            Problem: 401, another token, or a link that was used.
        """
        given = parse_qs(query).get("token")
        if not given:
            return None
        by_link = _equal(given[0], self.link) and not self._linked
        if not by_link and not _equal(given[0], self.token) and not self._has_cookie(headers):
            raise Problem(401, "this link was used, or is of another server: each is good once, so start it again")
        self._linked = self._linked or by_link
        return f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Lax"

    def cors_headers(self, origin: str | None) -> dict[str, str]:
        """What lets a page of a named origin read the answer."""
        if origin is None or origin not in self.cors:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Vary": "Origin",
        }

    def _is_known(self, host: str) -> bool:
        """A loopback name, the address it listens at, or a name it was given; with any port, for a container's or a
        proxy's may be another. Where it listens to all, every address is its own: only names can be rebound."""
        found = _HOST.fullmatch(host)
        if found is None or int(found[2] or 0) > 65535:
            return False
        name = found[1].lower()
        if name in ("localhost", self.host.lower(), f"[{self.host.lower()}]") or name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self.host)

    def _is_own(self, origin: str, host: str) -> bool:
        scheme, separator, place = origin.lower().partition("://")
        default = {"http": ":80", "https": ":443"}.get(scheme)
        if not separator or default is None:
            return False
        return place.removesuffix(default) == host.lower().removesuffix(default)

    def _has_cookie(self, headers: Mapping[str, str]) -> bool:
        pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
        return any(name == self.cookie and _equal(value, self._session) for name, _, value in pairs)

    def _has_bearer(self, headers: Mapping[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and _equal(token.strip(), self.token)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode())
