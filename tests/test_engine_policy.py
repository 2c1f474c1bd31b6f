"""The policy version, who is told of it, and whether it held while a request was out."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from areal_core._engine.events import Events
from areal_core._engine.policy import Policy, Weights
from logged import LogLines


@pytest.fixture
def policy() -> Policy:
    return Policy(Events())


def test_it_begins_with_version_0_which_nobody_set(policy: Policy) -> None:
    assert (policy.version, policy.weights, policy.set_by_hand, policy.is_changing) == (0, None, False, False)


def test_subscribers_are_told_in_the_thread_that_sets_it_once_per_change(policy: Policy) -> None:
    told: list[tuple[int, int]] = []
    policy.subscribe(lambda version: told.append((version, threading.get_ident())))
    threads = []
    for version in (3, 3, 4):
        thread = threading.Thread(target=policy.set, args=(version,))
        thread.start()
        threads.append((version, thread.ident))
        thread.join()
    assert told == [threads[0], threads[2]]


def test_a_subscriber_may_ask_for_the_version_and_unsubscribe(policy: Policy) -> None:
    seen: list[int] = []

    def callback(version: int) -> None:
        seen.append(policy.version)
        end()

    end = policy.subscribe(callback)
    policy.set(1)
    policy.set(2)
    assert seen == [1]


def test_the_same_callback_twice_is_two_subscriptions(policy: Policy) -> None:
    told: list[int] = []
    ends = [policy.subscribe(told.append), policy.subscribe(told.append)]
    policy.set(1)
    ends[0]()
    policy.set(2)
    assert told == [1, 1, 2]


def test_a_subscriber_that_raises_keeps_it_from_nobody(policy: Policy, log_lines: LogLines) -> None:
    told: list[int] = []

    def bad(_: int) -> None:
        raise ZeroDivisionError("in the subscriber")

    policy.subscribe(bad)
    policy.subscribe(told.append)
    policy.set(1)
    assert told == [1]
    assert isinstance(log_lines.wait_for("version_subscriber_raised").error, ZeroDivisionError)


def test_a_subscriber_with_an_in_order_is_told_by_what_that_returned_as_the_version_was_set(
    policy: Policy,
) -> None:
    told: list[tuple[str, int]] = []

    class Subscriber:
        def in_order(self) -> Callable[[int], None]:
            turn = policy.version
            return lambda version: told.append((f"while {turn}", version))

        def __call__(self, version: int) -> None:
            told.append(("called", version))

    policy.subscribe(Subscriber())
    policy.set(1)
    policy.set(2)
    assert told == [("while 1", 1), ("while 2", 2)]


def test_a_subscriber_whose_in_order_is_something_else_is_called(policy: Policy) -> None:
    told: list[int] = []

    class Subscriber:
        def in_order(self, sort_by: str) -> None:
            raise AssertionError(sort_by)

        def __call__(self, version: int) -> None:
            told.append(version)

    policy.subscribe(Subscriber())
    policy.set(1)
    assert told == [1]


@pytest.mark.parametrize("callback", [None, 3, "text"])
def test_what_cannot_be_called_is_no_subscriber(policy: Policy, callback: object) -> None:
    with pytest.raises(TypeError, match="cannot be called"):
        policy.subscribe(callback)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [-1, True, 1.0, "1", None])
def test_what_is_no_version_changes_nothing(policy: Policy, version: object) -> None:
    moment = policy.moment()
    with pytest.raises((ValueError, TypeError)):
        policy.set(version)  # type: ignore[arg-type]
    assert policy.held_since(moment)


def test_nothing_that_began_or_ended_since_a_moment_held(policy: Policy) -> None:
    def changing() -> bool:
        return policy.is_changing

    before = policy.moment()
    assert policy.held_since(before)
    with policy.changing():
        assert changing()
        assert not policy.held_since(before)
        during = policy.moment()
        with policy.changing():
            pass
        assert changing()
        assert not policy.held_since(during)
        during = policy.moment()
    assert not changing()
    assert not policy.held_since(during)
    after = policy.moment()
    policy.set(0)  # also the version it had: somebody says that weights came
    assert not policy.held_since(after)


def test_a_change_that_raises_is_over_too(policy: Policy) -> None:
    with pytest.raises(ZeroDivisionError), policy.changing():
        raise ZeroDivisionError
    assert not policy.is_changing


def test_it_is_known_whether_the_last_version_came_with_weights(policy: Policy) -> None:
    weights = Weights("path", 1)
    policy.set(1, weights)
    assert (policy.weights, policy.set_by_hand) == (weights, False)
    policy.set(1)  # says what is known
    assert not policy.set_by_hand
    policy.set(2)
    assert (policy.weights, policy.set_by_hand) == (weights, True)
    policy.set(2, Weights("path", 2))
    assert not policy.set_by_hand
