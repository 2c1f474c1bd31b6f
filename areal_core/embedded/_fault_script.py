"""The words in which faults are ordered: one fault with its parameters, and when it strikes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from areal_core.embedded._checks import BadRequestError, boolean, integer, mapping, number, string

GRAMMAR = """\
As text, KEY=VALUE joined by commas, a flag as its key alone; as JSON, an object of the same keys:

    status=503,retry_after=2,every=3,path=/generate
    {"status": 503, "retry_after": 2, "every": 3, "path": "/generate"}

Exactly one key is a fault:

    latency=MS         answer so much later; with distribution=lognormal,sigma=S (MS is the median) or
                       distribution=exponential (MS is the mean) drawn for each request
    status=CODE        refuse, with retry_after=SECONDS or any other text as the header Retry-After
    abort=N            end the generation with "abort" after N tokens; 0 makes none
    disconnect=N       hang up after N bytes of the body; 0 before the first byte of the head; with reset
                       by a TCP reset
    idle=SECONDS       hang up when the connection was idle so long after the reply
    race               hang up as a request arrives on a connection that has served one before
    malformed=HOW      spoil the reply: not_json, truncated, empty, deep (nested), not_utf8, content_type,
                       wrong_types, missing_ids, uneven (ids and log-probabilities), nan
    oversized=BYTES    reply with so many bytes; with gzip, that is what few bytes unpack to
    redirect=URL       send the client elsewhere by a 307
    silent             take the request and never answer
    drip=MS            reply with a byte every MS milliseconds, for ever

The other keys say which requests it strikes: path=PATTERN those whose path matches, with * for
anything (without it, all that generate), and of these at most one of every=K each K-th, next=N the
next N, probability=P each with this probability, drawn from seed=S; else all.

A request meets the faults in their order. Those of the kinds latency and idle add up; the first other one
that strikes is the last it meets.
"""
"""What the command says of it."""

GENERATE_PATHS = frozenset({"/generate", "/inference/v1/generate", "/v1/completions", "/v1/chat/completions"})
"""The paths that generate, in any dialect."""

ABORT_AFTER: ContextVar[int | None] = ContextVar("ABORT_AFTER", default=None)
"""After how many tokens the generations of the request that is being handled are aborted; None: never."""

_MOST = 10**15


class Malformed(StrEnum):
    """What can be wrong with a reply. In a stream it is wrong with every piece."""

    NOT_JSON = "not_json"
    """HTML, said to be JSON."""
    TRUNCATED = "truncated"
    """Half the JSON, whole in HTTP's eyes."""
    EMPTY = "empty"
    """No byte."""
    DEEP = "deep"
    """A hundred thousand lists in one another."""
    NOT_UTF8 = "not_utf8"
    """JSON with a byte in each text, names of fields apart, that is no UTF-8."""
    CONTENT_TYPE = "content_type"
    """The right body, said to be HTML."""
    WRONG_TYPES = "wrong_types"
    """Each number is a string."""
    MISSING_IDS = "missing_ids"
    """No token ids, and no log-probabilities, which may hold them."""
    UNEVEN = "uneven"
    """One log-probability too few."""
    NAN = "nan"
    """Each log-probability, and each other float, is NaN."""


@dataclass(frozen=True)
class Fault:
    """One fault, checked; what is None does not apply."""

    kind: str
    value: Any
    """Of the kind's own key; True for a flag."""
    path: str | None = None
    probability: float | None = None
    every: int | None = None
    next: int | None = None
    seed: int = 0
    distribution: str = "constant"
    sigma: float = 1.0
    retry_after: str | None = None
    reset: bool = False
    gzip: bool = False

    @property
    def name(self) -> str:
        """The name it is counted under."""
        if self.kind in ("status", "malformed"):
            return f"{self.kind}_{self.value}"
        return "oversized_gzip" if self.gzip else self.kind

    def matches(self, path: str) -> bool:
        """Whether it may strike a request with this *path*."""
        return path in GENERATE_PATHS if self.path is None else fnmatchcase(path, self.path)


class ArmedFault:
    """A fault that strikes: it counts the requests it meets."""

    def __init__(self, fault: Fault, place: int) -> None:
        """Arm *fault*, the one at *place* in its script: equal faults do not draw equal numbers."""
        self.fault = fault
        self._random = random.Random(f"{place}/{fault.seed}")
        self._met = 0

    def strikes(self) -> bool:
        """Count one more request; say whether this one is struck."""
        self._met += 1
        fault = self.fault
        if fault.every is not None:
            return self._met % fault.every == 0
        if fault.next is not None:
            return self._met <= fault.next
        return fault.probability is None or self._random.random() < fault.probability

    def draw_s(self) -> float:
        """Draw the latency of one request, in seconds."""
        fault = self.fault
        factor = 1.0
        if fault.distribution == "lognormal":
            factor = self._random.lognormvariate(0, fault.sigma)
        elif fault.distribution == "exponential":
            factor = self._random.expovariate(1)
        return float(fault.value) * factor / 1000


def read_fault(where: str, given: Any) -> Fault:
    """Read one fault, given as text or as a decoded JSON object; *where* is what errors call it.

    Raises BadRequestError for one that no server could do.
    """
    values = _split(where, given) if isinstance(given, str) else mapping(where, given)
    kinds = [key for key in values if key in _KINDS]
    if len(kinds) != 1:
        problem = f"names {' and '.join(kinds)}; give one of them"
        if not kinds:
            problem = f"names no fault; give one of {', '.join(_KINDS)}"
        raise BadRequestError(where, given, problem)
    kind = kinds[0]
    extras = _EXTRAS.get(kind, {}) | _STRIKES
    for key in values:
        if key != kind and key not in extras:
            raise BadRequestError(
                f"{where}.{key}", values[key], f"is not for {kind}, which has {', '.join(extras)}"
            )
    read = {key: extras[key](f"{where}.{key}", value) for key, value in values.items() if key != kind}
    strikes = [key for key in ("every", "next", "probability") if key in read]
    if len(strikes) > 1:
        raise BadRequestError(where, given, f"has {' and '.join(strikes)}; give one of them")
    return Fault(kind, _KINDS[kind](f"{where}.{kind}", values[kind]), **read)


def _split(where: str, text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key:
            raise BadRequestError(where, text, "is not KEY=VALUE,KEY=VALUE")
        if key in values:
            raise BadRequestError(where, text, f"has {key} twice")
        values[key] = _value(value) if equals else True
    return values


def _value(text: str) -> Any:
    # "nan" is a word here.
    for kind in (int, float) if text[-1:].isdecimal() else ():
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# Readers of one value each: (what to call it, the value) -> the value, checked.
_Read = Callable[[str, Any], Any]


def _from(low: int, high: int = _MOST) -> _Read:
    def read(name: str, value: Any) -> int:
        # Whoever writes 1e10 means an integer.
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        return integer(name, whole, low, high)

    return read


def _number(low: float, high: float = float(_MOST)) -> _Read:
    def read(name: str, value: Any) -> float:
        if not low <= number(name, value) <= high:  # NaN neither
            raise BadRequestError(name, value, f"is not in {low:g}..{high:g}")
        return float(value)

    return read


def _one_of(*words: str) -> _Read:
    def read(name: str, value: Any) -> str:
        if value not in words:
            raise BadRequestError(name, value, f"is none of {', '.join(words)}")
        return str(value)

    return read


def _flag(name: str, value: Any) -> bool:
    if not boolean(name, value):
        raise BadRequestError(name, value, "turns nothing on; leave it out")
    return True


def _or_bare(read: _Read, default: Any) -> _Read:
    """Take a key without a value for the *default*."""
    return lambda name, value: default if value is True else read(name, value)


def _url(name: str, value: Any) -> str:
    if not string(name, value).startswith(("http://", "https://")):
        raise BadRequestError(name, value, "is not an http:// or https:// URL")
    return str(value)


def _header(name: str, value: Any) -> str:
    text = str(value) if type(value) in (int, float) else string(name, value)
    if not text.isascii() or not text.isprintable():
        raise BadRequestError(name, value, "is no text for a header")
    return text


_KINDS: Mapping[str, _Read] = {
    "latency": _number(0),
    "status": _from(400, 599),
    "abort": _or_bare(_from(0), 0),
    "disconnect": _or_bare(_from(0), 0),
    "idle": _number(0),
    "race": _flag,
    "malformed": _one_of(*Malformed),
    "oversized": _from(1),
    "redirect": _url,
    "silent": _flag,
    "drip": _number(math.ulp(0.0)),
}
_EXTRAS: Mapping[str, dict[str, _Read]] = {
    "latency": {"distribution": _one_of("constant", "lognormal", "exponential"), "sigma": _number(0, 10)},
    "status": {"retry_after": _header},
    "disconnect": {"reset": _flag},
    "race": {"reset": _flag},
    "oversized": {"gzip": _flag},
}
_STRIKES: dict[str, _Read] = {
    "path": string,
    "every": _from(1),
    "next": _from(1),
    "probability": _number(0, 1),
    "seed": _from(-_MOST),
}
FAULT_NAMES = frozenset(
    {kind for kind in _KINDS if kind not in ("status", "malformed")}
    | {f"status_{code}" for code in range(400, 600)}
    | {f"malformed_{how}" for how in Malformed}
    | {"oversized_gzip"}
)
"""All names that faults are counted under."""
