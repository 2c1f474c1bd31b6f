"""The configuration of engine and executor: what is taken, what is refused, and what it shows of itself."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from areal_core.config import InferenceEngineConfig

KEY = "sk-s3cret"
AT_LEAST = "give an integer of at least"
A_NUMBER = "give a finite number in"


@pytest.mark.parametrize(
    ("field", "value", "kind", "says"),
    [
        ("consumer_batch_size", 0, ValueError, f"consumer_batch_size=0 is below 1; {AT_LEAST} 1"),
        ("consumer_batch_size", None, TypeError,
         f"consumer_batch_size=None is not an int; {AT_LEAST} 1"),
        ("max_concurrent_rollouts", 0, ValueError,
         f"max_concurrent_rollouts=0 is below 1; {AT_LEAST} 1"),
        ("max_concurrent_rollouts", True, TypeError,
         f"max_concurrent_rollouts=True is not an int; {AT_LEAST} 1"),
        ("max_inflight_per_server", 0.5, TypeError,
         f"max_inflight_per_server=0.5 is not an int; {AT_LEAST} 1"),
        ("max_head_offpolicyness", -1, ValueError,
         f"max_head_offpolicyness=-1 is below 0; {AT_LEAST} 0"),
        ("request_retries", -1, ValueError, f"request_retries=-1 is below 0; {AT_LEAST} 0"),
        ("min_servers", 0, ValueError, f"min_servers=0 is below 1; {AT_LEAST} 1"),
        ("max_reply_bytes", 0, ValueError, f"max_reply_bytes=0 is below 1; {AT_LEAST} 1"),
        ("request_timeout", 0, ValueError, "request_timeout=0 leaves no time; give seconds"),
        ("setup_timeout", -1, ValueError, f"setup_timeout=-1.0 is out of range; {A_NUMBER} 0..inf"),
        ("control_timeout", float("nan"), ValueError,
         f"control_timeout=nan is out of range; {A_NUMBER} 0..inf"),
        ("silence_timeout", None, TypeError, "silence_timeout=None is not a number; give one"),
        ("model", "", ValueError, "model is an empty text; give one with something in it"),
        ("api_key", 5, TypeError, "api_key is a int; give a text, or one per address"),
        ("api_key", {"host:1": None}, TypeError, "api_key has a NoneType for a str; give a text per address"),
        ("api_key", {1: KEY}, TypeError, "api_key has a str for a int; give a text per address"),
        ("api_key", KEY.encode(), TypeError, "api_key is a bytes; give a text, or one per address"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_would_do(
    field: str, value: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        InferenceEngineConfig(**{field: value})
    assert str(refused.value) == says


@pytest.mark.parametrize("keys", [KEY, {"host:1": KEY}, MappingProxyType({"host:1": KEY})])
def test_a_key_is_not_in_what_a_configuration_looks_like(keys: Any) -> None:
    config = InferenceEngineConfig(api_key=keys)
    assert config.api_key == keys
    assert KEY not in repr(config)
    assert KEY not in str(config)


def test_it_cannot_be_changed_and_changes_with_nobodys_mapping() -> None:
    keys = {"host:1": KEY}
    config = InferenceEngineConfig(api_key=keys)
    keys["host:2"] = "other"
    assert config.api_key == {"host:1": KEY}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.min_servers = 2  # type: ignore[misc]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_it_can_be_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    config = InferenceEngineConfig(api_key=MappingProxyType({"host:1": KEY}), request_timeout=5)
    assert copied(config) == config


def test_numbers_of_numpy_become_pythons_own() -> None:
    config = InferenceEngineConfig(min_servers=np.int64(2), request_timeout=np.float32(1.5))  # type: ignore[arg-type]
    assert (type(config.min_servers), type(config.request_timeout)) == (int, float)
    assert (config.min_servers, config.request_timeout) == (2, 1.5)


def test_concurrency_is_what_is_said_or_what_the_staleness_budget_allows() -> None:
    assert InferenceEngineConfig(consumer_batch_size=8, max_head_offpolicyness=2).concurrency == 24
    assert InferenceEngineConfig(consumer_batch_size=8, max_concurrent_rollouts=5).concurrency == 5
    assert InferenceEngineConfig().concurrency == 1
