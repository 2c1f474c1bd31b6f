"""The options of the embedded server: names, types, defaults, checks, and the command line made of them.

`EmbeddedServer` names them again, for those who write its arguments: its defaults are those from here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from areal_core.embedded._checks import BadRequestError
from areal_core.embedded._fault_script import GRAMMAR, read_fault

# Far from any use, and far enough from infinity that no product of two overflows.
_MOST = 1e9

MODES = ("text", "test", "policy")
"""What can make the tokens."""


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
    slots: int = _option(128, "how many generations run at once, others wait; 0 sets no limit")
    mode: str = _option("text", f"what makes the tokens: {', '.join(MODES)}")
    weights: str | None = _option(None, "file with the weights to start with; None has those of version 0")
    incremental_streaming_output: bool = _option(False, "stream what is new, not all there is, in each chunk")
    weight_version_spans: bool = _option(False, "tell which weights made which tokens, as new SGLangs do")
    tokens_in_tokens_out: bool = _option(True, "have vLLM's /inference/v1/generate, which not all vLLMs have")
    log_tokens: bool = _option(False, "have the tokens of prompts and replies in the log, not only how many")
    fault: Sequence[str] = _option(
        (), "KEY=VALUE,... is a fault to begin with, see below; repeat it for more"
    )

    def __post_init__(self) -> None:
        for name, kind in _single().items():
            if name != "weights" or self.weights is not None:
                object.__setattr__(self, name, _typed(name, getattr(self, name), kind))
        object.__setattr__(self, "fault", _fault_texts(self.fault))
        if not self.host:
            raise ValueError("host='' names no address; the default is 127.0.0.1")
        if self.port not in range(65536):
            raise ValueError(f"port={self.port} is not in 0..65535; 0 takes a free one")
        for name in ("ms_per_token", "sigma", "cap"):
            if not 0 <= getattr(self, name) <= _MOST:
                raise ValueError(f"{name}={getattr(self, name)} is not in 0..{_MOST:g}")
        if self.cap == 0:
            raise ValueError("cap=0.0 leaves no pace; ms_per_token=0 answers at once")
        self._check_generating()

    def _check_generating(self) -> None:
        if self.slots < 0:
            raise ValueError(f"slots={self.slots} is less than none; 0 sets no limit")
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")
        if self.weights == "":
            raise ValueError("weights='' names no file; None starts with those of version 0")

    def arguments(self) -> list[str]:
        """Return the command-line arguments that `parse` turns back into equal options."""
        given = [
            _argument(name, getattr(self, name)) for name in _single() if getattr(self, name) is not None
        ]
        return given + [f"--fault={text}" for text in self.fault]


def parse(argv: list[str] | None) -> tuple[ServerOptions, int | None]:
    """Return the options on the command line *argv* (None: this process's), and the pid in ``--parent``.

    A bad value ends the program with a sentence on stderr and status 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m areal_core.embedded",
        description="Answer what SGLang, vLLM and OpenAI's completions and chats do, with made-up\n"
        "tokens at a realistic pace, without a GPU. Prints one JSON line with addr and pid once\n"
        "it listens; ends on SIGTERM or SIGINT.",
        epilog=f"The faults. {GRAMMAR}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    single = _single()
    for spec in fields(ServerOptions):
        flag, text = _flag(spec.name), spec.metadata["help"]
        if single.get(spec.name) is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=spec.default, help=text)
        elif spec.name in single:
            text = text if spec.default is None else f"{text} (default: %(default)s)"
            parser.add_argument(flag, type=single[spec.name], default=spec.default, help=text)
        else:
            parser.add_argument(flag, action="append", default=[], help=text)
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


def _argument(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _flag(name) if value else _flag(f"no_{name}")
    return f"{_flag(name)}={value}"


def _single() -> dict[str, type]:
    """Return name and type of each option that is there once; that of an optional one is what it has."""
    kinds = get_type_hints(ServerOptions)
    kinds["weights"] = str
    return {spec.name: kinds[spec.name] for spec in fields(ServerOptions) if spec.name != "fault"}


def _fault_texts(texts: Any) -> tuple[str, ...]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"fault={texts!r} is not a list of texts")
    try:
        for index, text in enumerate(texts):
            read_fault(f"fault[{index}]", text)
    except BadRequestError as error:
        raise ValueError(str(error)) from None
    return tuple(texts)


def _typed(name: str, value: Any, kind: type) -> Any:
    """Return *value* as a *kind*; only an int that stands for a float changes."""
    if kind is float and type(value) is int:
        return float(value)
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} is not {'an int' if kind is int else f'a {kind.__name__}'}")
    return value
