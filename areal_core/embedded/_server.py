"""`EmbeddedServer`: the embedded server as an object."""

from __future__ import annotations

import atexit
import dataclasses
import http.client
import json
import os
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from areal_core._process import call_in_child
from areal_core.embedded._child import ServerProcess
from areal_core.embedded._fault_script import FAULT_NAMES
from areal_core.embedded._options import ServerOptions
from areal_core.embedded._stats import COUNTERS, ServerStats

_servers: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


class EmbeddedServer:
    """Run an inference server without a GPU, in a process of its own, for as long as a ``with`` block.

    ```python
    with EmbeddedServer(ms_per_token=2, seed=7) as server:
        print(server.url)  # http://127.0.0.1:40001
    ```

    The arguments are the options of ``python -m areal_core.embedded``: *host* and *port* (0 takes a free
    one) to listen on; *ms_per_token*, the median time per token in milliseconds (0 answers at once);
    *sigma* and *cap* of the lognormal that each request's pace is drawn from; *seed*, which decides
    which requests are slow; *slots*, how many run at once while others wait (0: no limit); *mode* "text",
    "test" or "policy", what makes the tokens; *weights*, the file to start with, None for those of version
    0; *incremental_streaming_output*, to stream only what is new in each chunk; *weight_version_spans*, to
    tell which weights made which tokens, as new versions of SGLang do; *tokens_in_tokens_out*, to have
    vLLM's ``/inference/v1/generate``; *log_tokens*, to have tokens in the `log`; *fault*, the faults to begin
    with (see `faults`). *start_timeout* bounds the start, in seconds.

    The server is stopped at the end of the block, by `stop`, when the interpreter exits, and with this
    process, even one that is killed. Ctrl-C does not reach it. Constructing starts nothing. Any thread
    may use it; `start` blocks for about half a second, so on an event loop call it through
    ``asyncio.to_thread``. To a forked child, it is a server that was never started.

    Raises ValueError or TypeError for an option no server could work with.
    """

    def __init__(
        self,
        host: str = ServerOptions.host,
        port: int = ServerOptions.port,
        ms_per_token: float = ServerOptions.ms_per_token,
        sigma: float = ServerOptions.sigma,
        cap: float = ServerOptions.cap,
        seed: int = ServerOptions.seed,
        slots: int = ServerOptions.slots,
        mode: str = ServerOptions.mode,
        weights: str | os.PathLike[str] | None = ServerOptions.weights,
        incremental_streaming_output: bool = ServerOptions.incremental_streaming_output,
        weight_version_spans: bool = ServerOptions.weight_version_spans,
        tokens_in_tokens_out: bool = ServerOptions.tokens_in_tokens_out,
        log_tokens: bool = ServerOptions.log_tokens,
        fault: Sequence[str] = ServerOptions.fault,
        *,
        start_timeout: float = 30.0,
    ) -> None:
        self._process: ServerProcess | None = None
        self._lock = threading.Lock()
        self._addr: str | None = None
        if not start_timeout > 0:
            raise ValueError(f"start_timeout={start_timeout} is not a number of seconds above 0")
        self._start_timeout = start_timeout
        self.options = ServerOptions(
            host,
            port,
            ms_per_token,
            sigma,
            cap,
            seed,
            slots,
            mode,
            os.fspath(weights) if isinstance(weights, os.PathLike) else weights,
            incremental_streaming_output,
            weight_version_spans,
            tokens_in_tokens_out,
            log_tokens,
            fault,
        )
        _servers.add(self)

    def start(self) -> None:
        """Start the server and return when it listens; nothing happens if it runs already.

        One that was stopped, or died, starts again on the port it had, with its counters at zero.

        Raises RuntimeError, with the server's own words, if it cannot start (the port is in use), and
        TimeoutError if it does not listen within *start_timeout* seconds.
        """
        with self._lock:
            if self._process is not None:
                if self._process.running:
                    return
                self._release()
            options = self.options
            if self._addr is not None:
                options = dataclasses.replace(options, port=int(self._addr.rpartition(":")[2]))
            self._process = ServerProcess(options, self._start_timeout)
            self._addr = self._process.addr

    def stop(self) -> None:
        """Stop the server and wait for its end; nothing happens if it does not run.

        Requests in flight are cut off. What the server wrote to its stderr, nothing as a rule, is
        written to ours.
        """
        with self._lock:
            if self._process is not None:
                self._release()

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would, and wait for its end; `start` brings it back."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        process = self._process
        return process is not None and process.running

    @property
    def addr(self) -> str:
        """``host:port``, known from the first start on and kept over a restart. RuntimeError before."""
        if self._addr is None:
            raise RuntimeError("the embedded server has no address yet; call start(), or use it in a `with`")
        return self._addr

    @property
    def url(self) -> str:
        """``http://host:port``, with no slash at the end."""
        return f"http://{self.addr}"

    @property
    def pid(self) -> int:
        """The id of the server process. RuntimeError when there is none."""
        return self._running_process().pid

    def stats(self, timeout: float = 10.0, **at_least: int) -> ServerStats:
        """Return the server's counters, once those named have reached their values.

        ``server.stats(in_flight=64)`` waits until 64 generations run at once, ``server.stats()`` for
        nothing. Asking takes a connection and a request of its own, and both are counted.

        The names of faults are counters too: ``server.stats(status_503=3)``.

        Raises TimeoutError after *timeout* seconds, TypeError for a name that is no counter, and
        RuntimeError when the server does not run.
        """
        for name in at_least:
            if name not in COUNTERS and name not in FAULT_NAMES:
                raise TypeError(f"{name} is not a counter; there are {', '.join(COUNTERS)}")
        query = "&".join(f"{name}={value}" for name, value in at_least.items())
        _, body = self._call("GET", f"/stats?{query}", None, timeout, query or "answer")
        return ServerStats(**json.loads(body))

    def faults(self, faults: Sequence[str | Mapping[str, Any]], timeout: float = 10.0) -> None:
        """Turn *faults* on, in the place of those before; ``[]`` turns all off.

        Each is a text or a mapping; ``python -m areal_core.embedded --help`` has the words:

        ```python
        server.faults(["status=503,every=3", {"latency": 20, "distribution": "exponential"}])
        ```

        Requests that have arrived keep those they met. `stats` counts how often each struck.

        Raises ValueError for a fault the server does not know, TimeoutError after *timeout* seconds, and
        RuntimeError when the server does not run.
        """
        body = json.dumps(list(faults))
        status, reply = self._call("POST", "/faults", body, timeout, "answer")
        if status != 200:
            raise ValueError(json.loads(reply)["error"]["message"])

    def log(self, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Return what the server wrote down, oldest first; it keeps the last 100 000 events.

        Each has ``event`` and ``at``, seconds on this machine's monotonic clock. A "start" has ``id`` and
        ``prompt_tokens``; an "end" also ``tokens``, how many there were, ``versions``, a list of
        ``[version, tokens]`` in their order, and ``how``: "stop", "length", "abort" or "disconnect". A
        generation starts when it need no more wait for the end of a pause. A "weights" has the ``version``
        and the ``label`` of the weights from then on. With *log_tokens*, a "start" has ``input_ids`` and an
        "end" ``output_ids``, the tokens themselves.

        Raises TimeoutError after *timeout* seconds, and RuntimeError when the server does not run.
        """
        events: list[dict[str, Any]] = json.loads(self._call("GET", "/log", None, timeout, "log")[1])
        return events

    def _call(
        self, method: str, path: str, body: str | None, timeout: float, awaited: str
    ) -> tuple[int, bytes]:
        self._running_process()
        host, _, port = self.addr.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout)
        try:
            connection.request(method, path, body)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except TimeoutError:
            raise TimeoutError(f"no {awaited} from {self.addr} within {timeout} s") from None
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<EmbeddedServer {self._addr or 'without address'} {state}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_process", None) is not None:
            try:
                _warn(f"{self!r} was never stopped; use it in a `with`", ResourceWarning, source=self)
            finally:  # the warning may be an error
                self.stop()

    def _running_process(self) -> ServerProcess:
        process = self._process
        if process is None or not process.running:
            raise RuntimeError("the embedded server does not run; call start(), or use it in a `with`")
        return process

    def _release(self) -> None:
        assert self._process is not None
        self._process.stop()
        # Only now: a stop that Ctrl-C interrupts is completed by the next.
        self._process = None

    def _arrive_in_child(self) -> None:
        # The lock may be held by a thread that does not exist here.
        self._lock = threading.Lock()
        process, self._process, self._addr = self._process, None, None
        if process is not None:
            process.abandon()


def _stop_all() -> None:
    for server in list(_servers):
        server.stop()


def _arrive_in_child() -> None:
    for server in list(_servers):
        server._arrive_in_child()


atexit.register(_stop_all)
call_in_child(_arrive_in_child)
