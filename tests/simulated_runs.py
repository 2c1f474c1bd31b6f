"""Scenarios for the simulation that are short, and in which nothing costs anything unless it is said."""

from __future__ import annotations

from typing import Any

from areal_core.config import InferenceEngineConfig
from areal_core.simulation import Costs, Scenario

FREE = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 0.0))
"""Nothing costs anything, and nothing is on its way."""


def scenario(**fields: Any) -> Scenario:
    """Return a short run in which code costs nothing and the trainer takes no time, unless *fields* say so.

    Fields of its config are given by their own names.
    """
    config = {
        "consumer_batch_size": 16,
        "max_head_offpolicyness": 3,
        **{name: fields.pop(name) for name in list(fields) if hasattr(InferenceEngineConfig(), name)},
    }
    defaults = {"train_s": 0.0, "update_s": 0.0, "warm_up_s": 20.0, "measured_s": 100.0, "costs": FREE}
    return Scenario(config=InferenceEngineConfig(**config), **{**defaults, **fields})


def pauses(seconds: float, **fields: Any) -> Scenario:
    """Return a run whose episodes take so many seconds, and ask for no tokens."""
    return scenario(tokens=0.0, tool_s=seconds, **fields)
