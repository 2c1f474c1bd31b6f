"""How fast a request is generated: drawn once per request id, whatever else the server does."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from statistics import NormalDist

from areal_core.embedded._options import ServerOptions

_NORMAL = NormalDist()
_LARGEST_EXPONENT = math.log(sys.float_info.max)
# What a client appends to the id of a request, to tell one attempt at it from the next.
_ATTEMPT = re.compile(r"-[0-9a-f]{32}\Z")


def ms_per_token(rid: str, options: ServerOptions) -> float:
    """Return the milliseconds each token of the request *rid* takes.

    ``options.ms_per_token`` times a lognormal of median 1 and ``options.sigma``, at most
    ``options.cap``: a pure function of *rid* and the options. A request that is aborted and sent again,
    under its id or under its id with another ``-<32 hexadecimal digits>`` behind, is as slow as it was:
    else aborting would cure stragglers.
    """
    key = f"{options.seed}:{request_of(rid)}".encode("utf-8", "surrogatepass")
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    # 52 bits and a half: never 0 and never 1, where the normal distribution has no quantile.
    deviation = _NORMAL.inv_cdf(((draw >> 12) + 0.5) / 2**52)
    factor = math.exp(min(options.sigma * deviation, _LARGEST_EXPONENT))
    return options.ms_per_token * min(factor, options.cap)


def request_of(rid: str) -> str:
    """Return the part of *rid* that is the same for each attempt at a request."""
    return _ATTEMPT.sub("", rid)
