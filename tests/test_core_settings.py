"""The rules that a config comes to."""

from __future__ import annotations

from typing import Any

import pytest

from areal_core._executor import settings
from areal_core._executor.rules import Rules
from areal_core.config import InferenceEngineConfig
from areal_core.staleness_manager import StalenessManager
from executor_tools import Engine


def rules_of(parts: int = 1, **config: Any) -> Rules:
    return settings.of(InferenceEngineConfig(**config), Engine(), None, parts)[1]


def test_rules_without_more_are_those_of_a_config_without_more() -> None:
    rules = rules_of(consumer_batch_size=1, max_head_offpolicyness=0)
    assert rules == Rules(batch=1, max_staleness=0, most_samples=None, most_started=16)
    assert rules.max_losses == 3
    with pytest.raises(TypeError):
        Rules(1, 0, None, 16)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"most_samples": None, "most_started": 16 * 30, "max_failures": 60, "max_unaccepted": 640}),
        ({"max_concurrent_rollouts": 40}, {"most_samples": 40, "most_started": 640, "max_failures": 80}),
        ({"max_concurrent_rollouts": 4}, {"most_samples": 4, "most_started": 64, "max_failures": 32}),
        ({"queue_size": 7}, {"most_started": 7}),
        (
            {"max_consecutive_failures": 5, "max_consecutive_unaccepted": 6},
            {"max_failures": 5, "max_unaccepted": 6},
        ),
    ],
)
def test_what_a_config_leaves_open_follows_from_how_many_run_at_once(
    config: dict[str, Any], expected: dict[str, Any]
) -> None:
    rules = rules_of(consumer_batch_size=10, max_head_offpolicyness=2, **config)
    assert {name: getattr(rules, name) for name in expected} == expected


def test_each_of_several_processes_has_its_share() -> None:
    config = {"consumer_batch_size": 12, "max_concurrent_rollouts": 8}
    rules = rules_of(4, **config)
    assert (rules.batch, rules.most_samples) == (3, 2)
    for name, value in config.items():
        with pytest.raises(ValueError, match=f"^{name}={value} cannot be divided by .*=5 without"):
            rules_of(5, **{**config, "consumer_batch_size": 10, name: value})


def test_the_manager_that_is_made_counts_by_the_same_rules() -> None:
    config = InferenceEngineConfig(consumer_batch_size=4, max_concurrent_rollouts=6, max_head_offpolicyness=2)
    provider = Engine()
    manager, _ = settings.of(config, provider, None, 2)
    assert manager.version_provider is provider
    assert (manager.consumer_batch_size, manager.max_concurrent_rollouts, manager.max_staleness) == (2, 3, 2)


def test_a_manager_that_is_given_knows_better_than_the_config() -> None:
    manager = StalenessManager(Engine(), 5, 6, 7)
    given, rules = settings.of(InferenceEngineConfig(consumer_batch_size=1), Engine(), manager, 1)
    assert given is manager
    assert (rules.most_samples, rules.batch, rules.max_staleness) == (5, 6, 7)


def test_who_knows_no_version_is_refused() -> None:
    engine: Any = object()
    with pytest.raises(TypeError, match=r"^inference_engine=<object .*> has no get_version\(\); give one"):
        settings.provider_of(InferenceEngineConfig(), engine, None)
