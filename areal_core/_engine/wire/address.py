"""Where a server listens, in one form however it was spelt."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self
from urllib.parse import SplitResult, urlsplit

from yarl import URL

_PORTS = {"http": 80, "https": 443}
_MOST_CHARACTERS = 500  # it stands in every error

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PATH = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})+)*")

_ADVICE = "give host:port, http://host:port or https://host/path"


@dataclass(frozen=True)
class Address:
    """The address of a server. Two that are equal are one server."""

    scheme: str
    host: str
    """In lower case; one of IPv6 without its brackets."""
    port: int
    path: str = ""
    """What comes before the path of every call; does not end in ``/``."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host:port`` or a URL. Raises TypeError, and ValueError for what is no server's address."""
        if not isinstance(text, str):
            raise TypeError(f"an address is a {type(text).__name__}, not a str; {_ADVICE}")
        try:
            return cls._read(text)
        except ValueError as error:
            problem = str(error)
        raise ValueError(f"address {_shown(text)!r} {problem}")  # and nothing chained that shows a password

    @classmethod
    def _read(cls, text: str) -> Self:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"has {len(text)} characters; {_MOST_CHARACTERS} is the most")
        if not (text.isascii() and text.isprintable() and " " not in text):
            raise ValueError(f"has characters that belong in no address; {_ADVICE}")
        if "@" in text:
            raise ValueError("has a user name or a password in it; give the server's key as api_key")
        if "?" in text or "#" in text:
            raise ValueError(f"has a query or a fragment; {_ADVICE}")
        with_scheme = "://" in text
        parts = _split(text if with_scheme else f"http://{text}")
        if parts.scheme not in _PORTS:
            raise ValueError(f"is neither http nor https; {_ADVICE}")
        if not with_scheme and not parts.netloc.rpartition(":")[2].isdigit():
            raise ValueError(f"has no port; {_ADVICE}")
        return cls(parts.scheme, _host(parts), _port(parts), _path(parts))

    @cached_property
    def name(self) -> str:
        """The shortest spelling of it, for errors and logs: ``host:port``, or a URL."""
        if self.scheme == "http":
            return f"{self._bracketed}:{self.port}{self.path}"
        return self._base

    def url(self, path: str, params: Mapping[str, str] | None = None) -> URL:
        """Return the URL of *path*, which begins with ``/``, with *params* added to its query."""
        url = URL(self._base + path)  # which it keeps, with what aiohttp asks of it
        return url.update_query(params) if params else url

    def __str__(self) -> str:
        return self.name

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def _base(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self._bracketed}{port}{self.path}"


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError("has no address of IPv6 in its brackets") from None


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ValueError("has no address of IPv6 in its brackets") from None
    if not _HOST.fullmatch(host):
        raise ValueError(f"has no host, or one that cannot be; {_ADVICE}")
    return host


def _port(parts: SplitResult) -> int:
    _, colon, digits = parts.netloc.rpartition("]")[2].partition(":")
    if not colon:
        return _PORTS[parts.scheme]
    if not digits.isdigit() or not 0 < int(digits) < 2**16:
        raise ValueError(f"has a port that is not in 1..65535; {_ADVICE}")
    return int(digits)


def _path(parts: SplitResult) -> str:
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError(f"has a path that cannot be; {_ADVICE}")
    return path


def _shown(text: str) -> str:
    """Return *text* without what may be secret: user and password, and the query."""
    if "@" in text:
        scheme = re.match("(https?://)?", text)
        text = f"{scheme and scheme[0]}***{text[text.rindex('@') :]}"
    text = re.sub(r"([?#]).*", r"\1***", text, flags=re.DOTALL)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:100]}..."
