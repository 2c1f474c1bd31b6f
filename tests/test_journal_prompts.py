"""The items of a dataloader, and what the journal calls them, without an executor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from areal_core._executor import prompts as module
from areal_core._executor.prompts import Prompts
from areal_core._executor.recovery import Recovery
from areal_core._executor.rollout import Plan, Rollout
from areal_core._journal.keys import Keys
from areal_core._journal.packing import pack, unpack
from areal_core._journal.records import Finished, Pending, Recovered
from areal_core.errors import DataExhaustedError
from executor_tools import answering, trajectory_of

PLAN = Plan(answering, None, 1, False, False)


class Desk:
    """Does at once what it is asked to, as a core that keeps what it is given."""

    def __init__(self) -> None:
        self.recovered: list[Rollout] = []
        self.submitted: list[Rollout] = []

    @property
    def core(self) -> Any:
        return self

    def call(self, op: Callable[..., object], *args: Any) -> None:
        op(*args)

    post = call

    def recover(self, rollouts: list[Rollout]) -> None:
        self.recovered += rollouts

    def submit(self, rollouts: list[Rollout]) -> None:
        self.submitted += rollouts


class Feeding:
    """Prompts, and the desk that they feed."""

    def __init__(self, recovery: Recovery | None = None) -> None:
        self.prompts = Prompts(itertools.count(), recovery)
        self.desk: Any = Desk()

    def feed(self, loader: Any, wanted: int = 1, *, is_last: bool = True) -> bool:
        return self.prompts.feed(self.desk, loader, PLAN, wanted, is_last)

    def submitted(self, loader: Any, wanted: int = 1) -> list[Rollout]:
        """Feed the desk with *wanted* rollouts at least; return those."""
        before = len(self.desk.submitted)
        assert self.feed(loader, wanted)
        return list(self.desk.submitted[before:])

    def keys(self, loader: Any, wanted: int = 1) -> list[str | None]:
        return [one.key for one in self.submitted(loader, wanted)]

    def ids(self, loader: Any, wanted: int = 1) -> list[Any]:
        return [one.data_id for one in self.submitted(loader, wanted)]


def recovery_of(*live: Finished | Pending) -> Recovery:
    finished = tuple(one for one in live if isinstance(one, Finished))
    pending = tuple(one for one in live if isinstance(one, Pending))
    return Recovery(Recovered(None, Keys(), finished, pending, 0), "journal")


def named(*ids: Any) -> list[dict[str, Any]]:
    return [{"data_id": own} for own in ids]


def test_who_has_no_journal_loads_nothing_of_it() -> None:
    assert not hasattr(module, "Recovery"), "NumPy comes with it"


def test_without_ids_of_their_own_items_are_named_by_pass_and_place() -> None:
    feeding, loader = Feeding(), [["a", "b"], ["c"]]
    assert feeding.ids(loader, 5) == ["0:0", "0:1", "0:2", "1:0", "1:1"]
    assert feeding.ids([["d"]], 2) == ["2:0", "3:0"], "an id names one item of one loader"


def test_what_is_no_dataloader_at_all_is_refused() -> None:
    with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
        Feeding().feed(None)


def test_the_error_of_a_dataloader_waits_for_the_last_call_and_is_forgotten_for_another() -> None:
    feeding = Feeding()
    assert not feeding.feed([1], is_last=False)
    assert feeding.ids([["a"]]) == ["1:0"]


def test_a_dataloader_without_items_is_not_said_to_be_exhausted_because_another_had_some() -> None:
    feeding = Feeding()
    assert feeding.ids([["a"]]) == ["0:0"]
    with pytest.raises(ValueError, match="no item in a whole pass") as raised:
        feeding.feed([])
    assert not isinstance(raised.value, DataExhaustedError)


@pytest.mark.parametrize("before", [0, 1], ids=["from the first", "behind an item"])
def test_the_thousandth_empty_list_in_a_row_is_refused_and_then_the_next_thousandth(before: int) -> None:
    feeding, empty = Feeding(), list[Any]()

    def lists() -> Iterator[list[int]]:
        yield from [[7]] * before
        while True:
            yield []
            empty.append(None)  # asked for the one behind it

    loader = lists()
    for count in (999, 1999):
        with pytest.raises(ValueError, match="1000 empty lists in a row"):
            feeding.feed(loader, before + 1)
        assert len(empty) == count


def test_a_list_that_cannot_be_made_into_rollouts_takes_no_places_from_those_behind_it() -> None:
    feeding, lists = Feeding(recovery_of()), iter([named("a"), [1, *named({7})], [2]])
    assert feeding.keys(lists) == ["0:'a'"]
    with pytest.raises(ValueError, match=r"data_id=\{7\} is a set, .* give a str or an int"):
        feeding.feed(lists)
    assert feeding.keys(lists) == ["0:3"]


class Interrupted:
    """A list that is interrupted once, behind its first item."""

    def __init__(self) -> None:
        self._was_interrupted = False

    def __iter__(self) -> Iterator[str]:
        return filter(self._is_item, "a!bc")

    def _is_item(self, letter: str) -> bool:
        if letter == "!" and not self._was_interrupted:
            self._was_interrupted = True
            raise KeyboardInterrupt
        return letter != "!"


def test_each_item_is_taken_once_out_of_a_list_that_a_ctrl_c_interrupts() -> None:
    feeding, loader = Feeding(), iter([Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        feeding.feed(loader)
    assert [one.data for one in feeding.submitted(loader)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("7", "'7'"),
        (7, "=7"),
        (np.int64(7), "=7"),
        (True, "bool=True"),
        (1.5, "float=1.5"),
        (b"7", "bytes=b'7'"),
        (UUID(int=7), "UUID=UUID('00000000-0000-0000-0000-000000000007')"),
        ((7, "7"), "(=7,'7')"),
    ],
)
def test_an_id_has_a_name_that_the_next_process_gives_it_too(own: Any, name: str) -> None:
    assert Feeding(recovery_of()).keys([named(own)]) == [f"0:{name}"]


def test_each_place_of_an_id_that_comes_again_in_a_pass_has_a_key_of_its_own() -> None:
    feeding, passes = Feeding(recovery_of()), iter([named("a", "b", "a", "b", "a"), named("b", "a", "a")])

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            yield next(passes)

    loader = Loader()
    assert feeding.keys(loader) == ["0:'a'", "0:'b'", "0:'a'#1", "0:'b'#1", "0:'a'#2"]
    assert feeding.keys(loader) == ["1:'b'", "1:'a'", "1:'a'#1"]


def test_an_item_goes_to_the_core_with_what_the_journal_takes_of_it() -> None:
    (rollout,) = Feeding(recovery_of()).submitted([named("a")])
    assert rollout.packed is not None
    assert unpack(rollout.packed) == {"data_id": "a"}


def test_what_an_earlier_run_left_is_handed_over_once_and_let_go() -> None:
    data, result = pack(0), pack({"trajectory": trajectory_of(0), "start_version": 0, "seconds": 1.0})
    recovery = recovery_of(Finished("0:0", 0, data, result, False), Pending("0:1", 0, pack(1)))
    feeding = Feeding(recovery)
    was_recovered = feeding.prompts.is_recovered
    assert feeding.keys([[0, 1, 2]], 2) == ["0:1", "0:2"]
    assert (was_recovered, feeding.prompts.is_recovered) == (False, True)
    assert [one.key for one in feeding.desk.recovered] == ["0:0"]
    assert recovery.rollouts(PLAN, itertools.count()) == ([], [])
    assert feeding.keys([[3]]) == ["1:0"]


def test_without_a_journal_there_is_nothing_to_be_handed_over() -> None:
    assert Feeding().prompts.is_recovered is True
