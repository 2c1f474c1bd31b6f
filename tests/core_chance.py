"""Rules of an executor by chance, for property tests of its core."""

from __future__ import annotations

import math
from typing import Any, get_args

from hypothesis import strategies as st

from areal_core._executor.rules import OnStale, Rules

ON_STALE: tuple[OnStale, ...] = get_args(OnStale)


def some_rules(**fixed: Any) -> st.SearchStrategy[Rules]:
    """Return rules of all kinds; what is in *fixed* is given: a value, or a strategy for it."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "batch": st.integers(1, 3),
        "max_staleness": st.integers(0, 4),
        "most_samples": st.none() | st.integers(1, 5),
        "most_started": st.sampled_from([100, 4]),
        "on_stale": st.sampled_from(ON_STALE),
        "straggler_wait_s": st.sampled_from([0.0, 10.0, math.inf]),
        "max_requeues": st.integers(0, 2),
        "max_failures": st.sampled_from([1_000, 3]),
        "max_unaccepted": st.sampled_from([1_000, 6]),
    }
    for name, value in fixed.items():
        fields[name] = value if isinstance(value, st.SearchStrategy) else st.just(value)
    return st.builds(Rules, **fields)
