"""The options of the embedded server, declared once for the command line and for `EmbeddedServer`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

# Far from any use, and far enough from infinity that no product of two overflows.
_MOST = 1e9


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ServerOptions:
    """Say how an embedded server listens and how fast it generates; checked when it is made.

    Raises ValueError or TypeError for a value no server could work with.
    """

    host: str = _option("127.0.0.1", "address or name to listen on")
    port: int = _option(0, "port to listen on; 0 takes a free one")
    ms_per_token: float = _option(16.0, "median time per token, in milliseconds; 0 answers at once")
    sigma: float = _option(0.8, "sigma of the lognormal each request's pace is drawn from; 0 makes all equal")
    cap: float = _option(8.0, "the slowest request takes this many times ms-per-token")
    seed: int = _option(0, "another seed gives other requests the slow paces; tokens do not depend on it")

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for spec in fields(self):
            object.__setattr__(self, spec.name, _typed(spec.name, getattr(self, spec.name), kinds[spec.name]))
        if not self.host:
            raise ValueError("host='' names no address; the default is 127.0.0.1")
        if self.port not in range(65536):
            raise ValueError(f"port={self.port} is not in 0..65535; 0 takes a free one")
        for name in ("ms_per_token", "sigma", "cap"):
            if not 0 <= getattr(self, name) <= _MOST:
                raise ValueError(f"{name}={getattr(self, name)} is not in 0..{_MOST:g}")
        if self.cap == 0:
            raise ValueError("cap=0.0 leaves no pace; ms_per_token=0 answers at once")

    def arguments(self) -> list[str]:
        """Return the command-line arguments that `parse` turns back into equal options."""
        return [f"{_flag(spec.name)}={getattr(self, spec.name)}" for spec in fields(self)]


def parse(argv: list[str] | None) -> tuple[ServerOptions, int | None]:
    """Return the options on the command line *argv* (None: this process's), and the pid in ``--parent``.

    A bad value ends the program with a sentence on stderr and status 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m areal_core.embedded",
        description="Answer SGLang's POST /generate with made-up tokens at a realistic pace, without a GPU. "
        "Prints one JSON line with addr and pid once it listens; ends on SIGTERM or SIGINT.",
        allow_abbrev=False,
    )
    kinds = get_type_hints(ServerOptions)
    for spec in fields(ServerOptions):
        text = f"{spec.metadata['help']} (default: %(default)s)"
        parser.add_argument(_flag(spec.name), type=kinds[spec.name], default=spec.default, help=text)
    parser.add_argument(
        "--parent",
        type=int,
        metavar="PID",
        help="end with the parent process PID, which holds the other end of the pipe on standard input",
    )
    values = vars(parser.parse_args(argv))
    parent = values.pop("parent")
    try:
        return ServerOptions(**values), parent
    except ValueError as error:
        parser.error(str(error))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _typed(name: str, value: Any, kind: type) -> Any:
    """Return *value* as a *kind*; only an int that stands for a float changes."""
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} is not {'an int' if kind is int else f'a {kind.__name__}'}")
    return value
