"""Which server the log calls slow, when, and how often."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from areal_core import GenerationHyperparameters, ModelRequest
from areal_core._engine import prober, slow_servers, speeds
from areal_core._engine.backends import backend_named
from areal_core._engine.events import Events
from areal_core._engine.server import Server
from areal_core._engine.slow_servers import SlowServers
from areal_core._engine.stats import ServerStats
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.exchange import Exchange
from areal_core.embedded import EmbeddedServer
from logged import LogLines
from scripted import Play, asking, engine_on
from test_server_stats import stats
from threaded_loops import turns_until


class Fleet:
    """Servers that give each of four requests so many tokens per second, watched on a clock of its own."""

    def __init__(self, logger: Any = None, streams: bool = True, **rates: float) -> None:
        backend = backend_named("sglang")
        self.rates = rates
        self.streams = streams
        self.servers = {
            name: Server(Exchange(Address.parse(f"{name}:1"), None, 1000), backend) for name in rates
        }
        self.now = 1000.0
        self.tokens = dict.fromkeys(rates, 0.0)
        self.slow = SlowServers(Events(logger))

    def pass_by(self, seconds: float, late_s: float = 0.0) -> None:
        """Let so many *seconds* pass, with a look at every half, where the loop is *late_s* late."""
        for _ in range(int(2 * seconds)):
            self.now += 0.5
            for name, rate in self.rates.items():
                self.tokens[name] += 4 * rate / 2
            if self.slow.is_due(self.now, late_s):
                self.slow.note(self.now, [(self.servers[name], self._stats(name)) for name in self.rates])

    def _stats(self, name: str) -> ServerStats:
        found = stats(name, tokens=self.tokens[name], seconds=4 * (self.now - 1000))
        return replace(found, name=self.servers[name].name, streams=self.streams)


def told_of(log_lines: LogLines) -> list[str]:
    """Return the names of the servers that were told of, in order."""
    lines = log_lines.of("warning")
    assert all(line.startswith("server_is_slow server=") for line in lines)
    return [line.split("server=")[1].split(" ")[0] for line in lines]


@pytest.mark.any_loop
def test_a_slow_server_is_told_of_with_its_speed_that_of_the_others_and_what_to_do(
    log_lines: LogLines,
) -> None:
    Fleet(a=40, b=41, c=5.04).pass_by(20)
    (line,) = log_lines.of("warning")
    assert line.startswith("server_is_slow server=c:1 tokens_per_s=5.0 others=41.0 remedy=")
    assert "remove_server()" in line


@pytest.mark.any_loop
def test_it_is_told_of_again_after_some_minutes_and_each_server_on_its_own(log_lines: LogLines) -> None:
    fleet = Fleet(a=40, b=40, c=40, d=5)
    fleet.pass_by(100)
    fleet.rates["c"] = 4.0
    fleet.pass_by(195)
    assert told_of(log_lines) == ["d:1", "c:1"]
    fleet.pass_by(30)
    assert told_of(log_lines) == ["d:1", "c:1", "d:1"]


@pytest.mark.any_loop
def test_one_that_another_loop_has_told_of_is_not_told_of_at_once(log_lines: LogLines) -> None:
    fleet = Fleet(a=40, b=5)
    fleet.pass_by(30)
    fleet.slow = SlowServers(Events())
    fleet.pass_by(60)
    assert told_of(log_lines) == ["b:1"]


@pytest.mark.any_loop
def test_one_that_is_slow_for_a_moment_is_not_told_of(log_lines: LogLines) -> None:
    fleet = Fleet(a=40, b=5)
    fleet.pass_by(8)
    fleet.rates["b"] = 80.0  # so that it is soon not slow by the minute's measure either
    fleet.pass_by(60)
    assert told_of(log_lines) == []


@pytest.mark.any_loop
def test_where_replies_come_whole_it_takes_a_minute(log_lines: LogLines) -> None:
    fleet = Fleet(streams=False, a=40, b=5)
    fleet.pass_by(60)
    assert told_of(log_lines) == []
    fleet.pass_by(10)
    assert told_of(log_lines) == ["b:1"]


@pytest.mark.any_loop
def test_nothing_is_said_while_the_loop_is_late_nor_of_what_was_counted_then(log_lines: LogLines) -> None:
    fleet = Fleet(a=40, b=5)
    fleet.pass_by(60, late_s=slow_servers.LATE_S)
    fleet.rates["b"] = 40.0
    fleet.pass_by(60)
    assert told_of(log_lines) == []
    fleet.rates["b"] = 5.0
    fleet.pass_by(90)
    assert told_of(log_lines) == ["b:1"]


@pytest.mark.any_loop
def test_a_logger_that_raises_does_no_harm(log_lines: LogLines) -> None:
    class Broken:
        def warning(self, event: str, **fields: object) -> None:
            raise OSError("no space left")

    Fleet(Broken(), a=40, b=5).pass_by(30)
    assert "lost_event=server_is_slow" in log_lines.of("error")[0]


# -- an engine -------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have little suffice to tell by."""
    monkeypatch.setattr(speeds, "_LEAST_S", 0.2)
    monkeypatch.setattr(slow_servers, "_EVERY_S", 0.0)
    monkeypatch.setattr(slow_servers, "_LASTING_S", 0.2)
    monkeypatch.setattr(slow_servers, "LATE_S", 60.0)
    monkeypatch.setattr(prober, "_LOOK_EVERY_S", 0.05)


@pytest.mark.usefixtures("soon")
def test_an_engine_tells_of_its_slow_server_though_nobody_watches(play: Play, log_lines: LogLines) -> None:
    async def act() -> None:
        with (
            EmbeddedServer(ms_per_token=5, sigma=0) as quick,
            EmbeddedServer(ms_per_token=100, sigma=0) as slow,
        ):
            async with engine_on(quick.addr, slow.addr) as engine:
                running = [asyncio.create_task(engine.agenerate(without_end())) for _ in range(4)]
                await turns_until(lambda: bool(log_lines.of("warning")))
                for one in running:
                    one.cancel()
                await asyncio.wait(running)
            (line,) = log_lines.of("warning")
            assert line.startswith(f"server_is_slow server={engine_name(slow)} tokens_per_s=")

    play(act)


def without_end() -> ModelRequest:
    """Return a request for far more tokens than a test waits for."""
    return ModelRequest([1, 2, 3], GenerationHyperparameters(max_new_tokens=100_000, ignore_eos=True))


def engine_name(server: EmbeddedServer) -> str:
    return Address.parse(server.addr).name


def test_the_prober_knows_how_late_its_loop_is(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    is_due = SlowServers.is_due

    def noticed(slow: SlowServers, now: float, late_s: float) -> bool:
        seen.append(late_s)
        return is_due(slow, now, late_s)

    monkeypatch.setattr(SlowServers, "is_due", noticed)
    monkeypatch.setattr(prober, "_LOOK_EVERY_S", 0.05)

    async def act() -> None:
        with EmbeddedServer(mode="test") as server:
            async with engine_on(server.addr) as engine:
                await engine.agenerate(asking())
                await turns_until(lambda: bool(seen))
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    pass  # keeps the loop
                before = len(seen)
                await turns_until(lambda: len(seen) > before)
                assert max(seen) >= 0.2

    play(act)
