"""Embedded servers that serve one test after the other: to start one takes a third of a second."""

from __future__ import annotations

import dataclasses
import http.client
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from areal_core.embedded import EmbeddedServer, ServerStats, write_weights


class ReusedServer(EmbeddedServer):
    """A server whose counters and log begin with the test."""

    _began = 0.0
    _before = ServerStats()

    def renew(self, first_weights: str) -> None:
        """Make it as if it had just started, with the weights of version 0 in the file *first_weights*."""
        if not self.running:
            self._began, self._before = 0.0, ServerStats()
            self.start()
            return
        self.faults([])
        self.post("/continue_generation", {})
        self.post("/abort_request", {"abort_all": True})
        while super().stats().in_flight:
            pass
        self.post("/update_weights_from_disk", {"model_path": first_weights, "weight_version": "default"})
        self._before, self._began = super().stats(), time.monotonic()

    def start(self, *faults: str) -> None:
        """Start it with *faults* turned on before anybody can call."""
        self.options = dataclasses.replace(self.options, fault=faults)
        super().start()

    def kill(self) -> None:
        super().kill()
        self._began, self._before = 0.0, ServerStats()

    def stats(self, timeout: float = 10.0, **at_least: int) -> ServerStats:
        before = {**dataclasses.asdict(self._before), **self._before.faults}
        now = super().stats(
            timeout, **{name: value + before.get(name, 0) for name, value in at_least.items()}
        )
        counters = {
            spec.name: getattr(now, spec.name) - before[spec.name]
            for spec in dataclasses.fields(ServerStats)
            if spec.name not in ("faults", "peak")
        }
        faults = {name: struck - self._before.faults.get(name, 0) for name, struck in now.faults.items()}
        struck = {name: times for name, times in faults.items() if times}
        return ServerStats(**counters, peak=now.peak, faults=struck)

    def log(self, timeout: float = 10.0) -> list[dict[str, Any]]:
        return [event for event in super().log(timeout) if event["at"] >= self._began]

    # -- calls of which the engine knows nothing

    def post(self, path: str, body: Any, timeout: float = 10.0) -> Any:
        """POST *body* to *path* and return the answer."""
        return self.ask("POST", path, body, timeout)

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 10.0) -> Any:
        """Make a call and return the answer."""
        host, _, port = self.addr.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            reply = connection.getresponse().read()
        finally:
            connection.close()
        return json.loads(reply) if reply else None

    def label(self) -> str:
        """Return which weights it says it has."""
        return str(self.ask("GET", "/get_model_info")["weight_version"])

    def load(self, path: str, version: int) -> None:
        """Give it weights, in another way than by the engine."""
        self.post("/update_weights_from_disk", {"model_path": path, "weight_version": str(version)})

    def versions(self) -> list[int]:
        """Return the versions it was given, in their order."""
        return [event["version"] for event in self.log() if event["event"] == "weights"]

    def generate_one(self) -> None:
        """Have it make one token, as soon as it is not paused."""
        self.post("/generate", {"input_ids": [1], "sampling_params": {"max_new_tokens": 1}})

    def is_paused(self) -> bool:
        """Return whether it makes no token."""
        return bool(super().stats().paused)


@contextmanager
def reused_servers(count: int, **options: Any) -> Iterator[list[ReusedServer]]:
    """Run *count* servers for the block."""
    servers = [ReusedServer(**{"mode": "test", "sigma": 0, **options}) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        try:
            list(pool.map(ReusedServer.start, servers))
            yield servers
        finally:
            list(pool.map(ReusedServer.stop, servers))


def renewed(servers: Sequence[ReusedServer], directory: Any) -> list[ReusedServer]:
    """Return *servers* as if they had just started."""
    path = directory / "weights-0"
    write_weights(path, 0)
    for server in servers:
        server.renew(str(path))
    return list(servers)
