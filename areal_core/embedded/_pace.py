"""How fast a request is generated: drawn once per request id, whatever else the server does."""

from __future__ import annotations

import hashlib
import math
import sys
from statistics import NormalDist

from ._options import ServerOptions

_NORMAL = NormalDist()
_LARGEST_EXPONENT = math.log(sys.float_info.max)


def ms_per_token(rid: str, options: ServerOptions) -> float:
    """Return the milliseconds each token of the request *rid* takes.

    ``options.ms_per_token`` times a lognormal of median 1 and ``options.sigma``, at most
    ``options.cap``: a pure function of *rid* and the options, so that a request which is aborted and
    sent again under its id is as slow as it was.
    """
    key = f"{options.seed}:{rid}".encode("utf-8", "surrogatepass")
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    # 52 bits and a half: never 0 and never 1, where the normal distribution has no quantile.
    deviation = _NORMAL.inv_cdf(((draw >> 12) + 0.5) / 2**52)
    factor = math.exp(min(options.sigma * deviation, _LARGEST_EXPONENT))
    return options.ms_per_token * min(factor, options.cap)
