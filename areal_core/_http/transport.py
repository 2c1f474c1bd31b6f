"""httpx on top of the aiohttp session: its own connection pool collapses under hundreds of requests."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from contextlib import nullcontext
from http.cookiejar import CookieJar
from typing import Any, NoReturn, Self, TypeVar

import aiohttp
import httpx
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from areal_core._http.config import HttpConfig
from areal_core._http.upload import Upload, body_of

# httpx has added what it wants to send.
_SENT_AS_IS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

# The first match counts: a timeout is also a connection error, and most are also OSErrors.
_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientProxyConnectionError, httpx.ProxyError),
    (aiohttp.ClientHttpProxyError, httpx.ProxyError),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientConnectionResetError, httpx.WriteError),
    (aiohttp.ClientOSError, httpx.ReadError),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),  # the reply was cut off
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError),  # the reply is not HTTP
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
    (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
    (aiohttp.ClientConnectionError, httpx.NetworkError),
    (aiohttp.ClientError, httpx.TransportError),
    (TimeoutError, httpx.TimeoutException),  # the total one, which httpx has no name for
    (ValueError, httpx.LocalProtocolError),  # a header that cannot be sent
)

# None: aiohttp found the connection closing before it could write, as when the server ended an idle
# connection while the request was leaving.
_WHILE_WRITING = (None, errno.EPIPE)


ClientT = TypeVar("ClientT", bound=httpx.AsyncClient)


def open_client(config: HttpConfig, session: Callable[[], aiohttp.ClientSession]) -> httpx.AsyncClient:
    """Make the client that sends its requests through whatever *session* returns."""
    timeout = httpx.Timeout(connect=config.connect, read=config.sock_read, write=config.sock_read, pool=None)
    return client_on(SessionTransport(session), timeout)


def client_on(
    transport: httpx.AsyncBaseTransport,
    timeout: httpx.Timeout,
    kind: type[ClientT] = httpx.AsyncClient,  # type: ignore[assignment]
) -> ClientT:
    """Make a client, of a certain *kind*, that sends its requests through *transport*."""
    # The session sees to proxies.
    return kind(transport=transport, timeout=timeout, cookies=NoCookies(), trust_env=False)


class SessionTransport(httpx.AsyncBaseTransport):
    """Sends each request through the session it is given for it, and leaves that open when it is closed."""

    def __init__(self, session: Callable[[], aiohttp.ClientSession]) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* and return the reply as soon as its headers are there.

        Raises httpx's errors for what goes wrong on the way.
        """
        session = self._session()
        limits = request.extensions.get("timeout", {})
        body = body_of(request, limits.get("write"))
        upload = body if isinstance(body, Upload) else None
        try:
            async with upload or nullcontext():
                reply = await session.request(
                    request.method,
                    _url(request.url),
                    headers=_headers(request),
                    skip_auto_headers=_SENT_AS_IS,
                    data=body,
                    allow_redirects=False,
                    auto_decompress=False,  # httpx does it
                    timeout=_timeout(limits, session.timeout.total),
                    server_hostname=request.extensions.get("sni_hostname"),
                )
        except Exception as error:
            if upload is not None:
                upload.raise_cause(error)
            _raise_as_httpx(error)
        return httpx.Response(
            reply.status, headers=reply.raw_headers, stream=_Reply(reply), extensions=_extensions(reply)
        )


class _Reply(httpx.AsyncByteStream):
    """The body of a reply, as it comes in."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._reply.content.readany()
        except Exception as error:
            _raise_as_httpx(error)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._reply.close()  # the connection stays, if the reply has come in whole


class NoCookies(CookieJar):
    """Takes no cookie from a reply: one rollout's must not go out with another's request."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Take none."""


def _url(url: httpx.URL) -> URL:
    """Return *url* as it stands, without name and password: httpx has made a header of them."""
    return URL(str(url.copy_with(username=None, password=None) if url.userinfo else url), encoded=True)


def _headers(request: httpx.Request) -> list[tuple[str, str]]:
    encoding = request.headers.encoding
    spelt: dict[bytes, str] = {}  # aiohttp drops one of two that are spelt differently
    return [
        (spelt.setdefault(name.lower(), name.decode("ascii")), value.decode(encoding))
        for name, value in request.headers.raw
        if name.lower() != b"transfer-encoding"  # aiohttp adds it, and refuses to find it
    ]


def _timeout(limits: dict[str, float | None], total: float | None) -> aiohttp.ClientTimeout:
    """Translate httpx's limits. The one for waiting for the pool has nothing to limit: nobody waits."""
    return aiohttp.ClientTimeout(
        total=total, connect=_seconds(limits.get("connect")), sock_read=_seconds(limits.get("read"))
    )


def _seconds(limit: float | None) -> float | None:
    if limit is None or limit == math.inf:  # aiohttp rounds, which infinity does not allow
        return None
    return max(limit, 0.001)  # to aiohttp, 0 is no limit


def _extensions(reply: aiohttp.ClientResponse) -> dict[str, Any]:
    version: Any = reply.version
    return {
        "http_version": f"HTTP/{version.major}.{version.minor}".encode(),
        "reason_phrase": (reply.reason or "").encode("ascii", "ignore"),
    }


def _raise_as_httpx(error: Exception) -> NoReturn:
    if isinstance(error, aiohttp.ClientResponseError):
        _hide_headers(error)
    for raised, translated in _ERRORS:
        if isinstance(error, raised):
            writing = translated is httpx.ReadError and getattr(error, "errno", None) in _WHILE_WRITING
            kind = httpx.WriteError if writing else translated
            raise kind(str(error) or type(error).__name__) from error
    raise error


def _hide_headers(error: aiohttp.ClientResponseError) -> None:
    """Take the request's headers out of *error*, which shows them in its repr: a key is in them."""
    error.request_info = error.request_info._replace(headers=CIMultiDictProxy(CIMultiDict()))
    error.args = (error.request_info, error.history)
