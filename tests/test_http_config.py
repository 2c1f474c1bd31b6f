from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import Callable, Iterator

import aiohttp
import httpx
import pytest

from areal_core import workflow_context
from areal_core.workflow_context import HttpConfig, configure_http

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

NO_SECONDS = [0, -1, -0.5, float("nan"), float("inf")]
NO_NUMBER = [True, "30", (1,)]


@pytest.fixture(autouse=True)
def _default_config() -> Iterator[None]:
    yield
    configure_http(HttpConfig())


def test_the_defaults_suit_generations_that_take_an_hour() -> None:
    assert dataclasses.asdict(HttpConfig()) == {
        "total": None,
        "connect": 30.0,
        "sock_read": 3600.0,
        "control_connect": 5.0,
        "keepalive_expiry": 4.0,
        "connections": 4096,
        "trust_env": False,
        "ssl_context": None,
    }


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HttpConfig().total = 3.0  # type: ignore[misc]


def test_a_config_is_written_with_names() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        HttpConfig(3.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["total", "connect", "sock_read", "control_connect", "keepalive_expiry"])
@pytest.mark.parametrize("value", NO_SECONDS)
def test_seconds_are_positive_and_finite(name: str, value: float) -> None:
    advice = "give seconds, or None for no limit" if name in ("total", "sock_read") else "give seconds"
    with pytest.raises(ValueError, match="seconds") as caught:
        HttpConfig(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{name}={value!r} is not positive and finite; {advice}"


@pytest.mark.parametrize("name", ["total", "connect", "sock_read", "control_connect", "keepalive_expiry"])
@pytest.mark.parametrize("value", NO_NUMBER)
def test_seconds_are_a_number(name: str, value: object) -> None:
    advice = "give seconds, or None for no limit" if name in ("total", "sock_read") else "give seconds"
    with pytest.raises(TypeError) as caught:
        HttpConfig(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{name}={value!r} is not a number; {advice}"


@pytest.mark.parametrize("name", ["connect", "control_connect", "keepalive_expiry"])
def test_only_what_may_be_unlimited_takes_none(name: str) -> None:
    assert HttpConfig(total=None, sock_read=None).sock_read is None
    with pytest.raises(TypeError, match=f"{name}=None is not a number; give seconds$"):
        HttpConfig(**{name: None})  # type: ignore[arg-type]


def test_small_values_and_ints_are_taken() -> None:
    config = HttpConfig(total=1, connect=0.001, sock_read=7, connections=1, trust_env=True)
    assert (config.total, config.connect, config.sock_read, config.connections) == (1, 0.001, 7, 1)


def test_connections_are_a_positive_int() -> None:
    with pytest.raises(ValueError, match=r"^connections=0 is not positive; give a number of connections$"):
        HttpConfig(connections=0)
    for value in (True, 2.0, None):
        with pytest.raises(TypeError) as caught:
            HttpConfig(connections=value)  # type: ignore[arg-type]
        assert str(caught.value) == f"connections={value!r} is not an int; give a number of connections"


def test_trust_env_is_a_bool() -> None:
    with pytest.raises(TypeError, match=r"^trust_env=1 is not a bool; give True or False$"):
        HttpConfig(trust_env=1)  # type: ignore[arg-type]


def test_an_ssl_context_is_one() -> None:
    context = ssl.create_default_context()
    assert HttpConfig(ssl_context=context).ssl_context is context
    with pytest.raises(TypeError, match=r"^ssl_context=True is not an ssl.SSLContext; give one, or None$"):
        HttpConfig(ssl_context=True)  # type: ignore[arg-type]


async def clients() -> tuple[aiohttp.ClientSession, aiohttp.ClientSession, httpx.AsyncClient]:
    return (
        await workflow_context.get_aiohttp_session(),
        await workflow_context.get_control_session(),
        await workflow_context.get_httpx_client(),
    )


def test_the_clients_have_no_limits_that_end_a_long_generation(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        session, control, client = await clients()
        assert session.timeout == aiohttp.ClientTimeout(
            total=None, connect=30.0, sock_connect=30.0, sock_read=3600.0
        )
        assert control.timeout == aiohttp.ClientTimeout(
            total=None, connect=5.0, sock_connect=5.0, sock_read=3600.0
        )
        assert client.timeout == httpx.Timeout(connect=30.0, read=3600.0, write=3600.0, pool=None)
        for each, limit_per_host in ((session, 0), (control, 16)):
            assert isinstance(each.connector, aiohttp.TCPConnector)
            assert (each.connector.limit, each.connector.limit_per_host) == (0, limit_per_host)
            assert each.connector.use_dns_cache
            assert not each.connector.force_close
            assert isinstance(each.cookie_jar, aiohttp.DummyCookieJar)
            assert not each.trust_env
        assert not client.trust_env
        assert not client.follow_redirects

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_the_clients_have_the_limits_that_were_configured(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        session, control, client = await clients()
        assert session.timeout == aiohttp.ClientTimeout(total=9, connect=2, sock_connect=2, sock_read=7)
        assert control.timeout == aiohttp.ClientTimeout(total=9, connect=3, sock_connect=3, sock_read=7)
        assert client.timeout == httpx.Timeout(connect=2, read=7, write=7, pool=None)
        assert session.trust_env
        assert control.trust_env
        assert not client.trust_env  # its proxies are the session's

    configure_http(HttpConfig(total=9, connect=2, sock_read=7, control_connect=3, trust_env=True))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_configuring_reaches_the_loops_that_have_no_clients_yet(loop_factory: LoopFactory) -> None:
    async def connect_timeout() -> float | None:
        session = await workflow_context.get_aiohttp_session()
        await session.close()
        return (await workflow_context.get_aiohttp_session()).timeout.connect  # made anew

    with (
        asyncio.Runner(loop_factory=loop_factory) as first,
        asyncio.Runner(loop_factory=loop_factory) as second,
    ):
        configure_http(HttpConfig(connect=1))
        assert first.run(connect_timeout()) == 1
        configure_http(HttpConfig(connect=2))
        assert first.run(connect_timeout()) == 1
        assert second.run(connect_timeout()) == 2


def test_a_loop_whose_clients_have_another_config_refuses(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        configure_http(HttpConfig(connect=1))  # no clients yet
        configure_http(HttpConfig(connect=2))
        await workflow_context.get_control_session()
        configure_http(HttpConfig(connect=2))  # what they have
        with pytest.raises(RuntimeError) as caught:
            configure_http(HttpConfig(connect=3))
        assert str(caught.value) == (
            f"this loop's HTTP clients were made with {HttpConfig(connect=2)}, not {HttpConfig(connect=3)}; "
            "configure before the loop's first client"
        )

    async def connect_timeout() -> float | None:
        return (await workflow_context.get_aiohttp_session()).timeout.connect

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(connect_timeout()) == 2  # the refused one was not kept


def test_only_a_config_can_be_configured() -> None:
    with pytest.raises(TypeError, match=r"^config=\{'connect': 3\} is not an HttpConfig; pass HttpConfig"):
        configure_http({"connect": 3})  # type: ignore[arg-type]
