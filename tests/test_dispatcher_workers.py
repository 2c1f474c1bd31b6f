"""Workers that go, that are silent, and whose loops hang: one law of the dispatcher in each test."""

from __future__ import annotations

import asyncio

import pytest

from areal_core._distributed.leases import Report
from areal_core._record import WAITING_FOR_ROOM
from lending import Office, an_end

pytestmark = pytest.mark.any_loop


# -- those that go ---------------------------------------------------------------------------------


def test_one_that_is_to_go_gets_nothing_more_finishes_what_it_has_begun_and_is_let_go() -> None:
    office = Office(workers=2, slots=2)
    rollouts = office.start(4)
    theirs = [one for one in rollouts if office.worker(one) == 1]
    assert office.dispatcher.drain(1)
    assert office.link.taken_back == [1] and not office.link.retired
    office.end(theirs[0])
    office.start(2)
    assert office.loads() == {1: 1, 2: 2} and office.dispatcher.waiting == 2
    office.end(theirs[1])
    assert office.link.retired == [1] and office.gone == [(1, None)]
    assert list(office.dispatcher.workers) == [2] and not office.lost and office.dispatcher.dead == 0


def test_what_it_hands_back_is_played_by_others_before_what_waited() -> None:
    office = Office(workers=2, slots=3, most_ahead=0)
    rollouts = office.start(8)
    first, second, third = [one for one in rollouts[:6] if office.worker(one) == 1]
    before = {one: office.parcel(one).number for one in (second, third)}
    office.dispatcher.drain(1)
    office.give_back(1, second, third)
    assert office.dispatcher.waiting == 4 and office.loads() == {1: 1, 2: 3}
    assert [one.episodes[0].record.stage for one in (second, third)] == [WAITING_FOR_ROOM] * 2
    assert sorted(office.link.forgotten) == [(1, [before[second]]), (1, [before[third]])]
    office.link.lent.clear()
    office.end(*[one for one in rollouts[:6] if one not in (first, second, third)])
    assert [(worker, rollout, is_first) for worker, rollout, is_first, _ in office.link.lent] == [
        (2, one.task_id, True) for one in (second, third, rollouts[6])
    ]
    assert {office.parcel(one).number for one in (second, third)}.isdisjoint(before.values())
    office.end(first)
    assert office.link.retired == [1]


def test_one_that_has_nothing_goes_at_once_and_one_that_is_not_there_does_not() -> None:
    office = Office(workers=1)
    assert office.dispatcher.drain(1) and office.link.retired == [1]
    assert not office.dispatcher.drain(1) and not office.dispatcher.drain(7)
    assert office.link.retired == [1] and office.gone == [(1, None)]


def test_one_that_is_told_twice_to_go_hands_back_once() -> None:
    office = Office(workers=1)
    office.start()
    assert office.dispatcher.drain(1) and office.dispatcher.drain(1)
    assert office.link.taken_back == [1]


def test_a_group_of_which_nothing_has_begun_goes_elsewhere_with_its_members_in_order() -> None:
    office = Office(workers=2, slots=4)
    (group,) = office.start(group_size=3)
    number = office.parcel(group).number
    office.dispatcher.drain(1)
    office.give_back(1, group, places=(2, 1, 0))
    assert office.link.lent[1:] == [(2, group.task_id, True, [0, 1, 2])]
    assert office.link.forgotten == [(1, [number])] and office.parcel(group).number != number
    assert office.link.retired == [1]


def test_a_group_that_has_begun_goes_on_where_it_is() -> None:
    office = Office(workers=2, slots=4)
    (group,) = office.start(group_size=3)
    office.end(group, place=0)
    office.dispatcher.drain(1)
    office.give_back(1, group, places=(2, 1))
    assert office.link.lent[1:] == [(1, group.task_id, False, [1, 2])]
    assert not office.link.forgotten and not office.link.retired
    office.end(group, place=1)
    office.end(group, place=2)
    assert not office.link.retired, "it may be judged"
    office.finish(group)
    assert office.link.retired == [1] and office.has_nothing()


def test_what_was_cancelled_on_its_way_back_ends_as_cancelled() -> None:
    office = Office(workers=2, slots=4)
    plain, group = *office.start(), *office.start(group_size=2)
    (episode,) = plain.episodes
    office.dispatcher.drain(1)
    office.cancel(plain)
    office.give_back(1, plain)
    assert office.ended == [episode] and isinstance(episode.error, asyncio.CancelledError)
    assert office.link.retired == [1] and office.dispatcher.waiting == 0
    office.dispatcher.drain(2)
    office.cancel(group)
    office.give_back(2, group, places=(1, 0))
    assert len(office.ended) == 3 and not office.link.lent[2:]
    office.finish(group)
    assert office.link.retired == [1, 2] and office.has_nothing()


def test_what_comes_back_and_is_cancelled_before_it_is_sent_again_leaves_nothing() -> None:
    office = Office(workers=1, slots=4)
    (group,) = office.start(group_size=2)
    office.end(group, place=0)
    office.dispatcher.drain(1)
    office.dispatcher.reported(1, Report(returned=[(office.parcel(group).number, 1)]))
    office.cancel(group)
    office.finish(group)
    assert [one.sample_idx for one in office.ended] == [0, 1]
    assert office.link.retired == [1] and office.has_nothing()


# -- those that are silent -------------------------------------------------------------------------


def test_one_that_gives_no_sign_of_life_is_killed_when_its_lease_is_over() -> None:
    office = Office(workers=2, lease_s=8.0)
    (plain,) = office.start()
    office.live(7.0, 2)
    assert not office.link.killed
    office.live(4.0, 2)
    assert office.link.killed == [(1, "it gave no sign of life for 8 s")]
    assert office.gone == office.link.killed and office.lost == [plain]
    office.live(40.0, 2)
    assert list(office.dispatcher.workers) == [2]


def test_a_sign_of_life_renews_the_lease() -> None:
    office = Office(workers=1, lease_s=8.0)
    for _ in range(5):
        office.clock.pass_over(7.5)
        office.report(1)
    assert not office.link.killed
    office.clock.pass_over(10.0)
    assert [worker for worker, _ in office.link.killed] == [1]


def test_what_could_not_be_sent_to_it_ends_and_is_no_sign_of_life_nor_does_it_end_a_hang() -> None:
    office = Office(workers=1, slots=3, lease_s=8.0, hang_s=10.0)
    rollouts = office.start(3)
    office.report(1, stalled_s=11.0)
    for rollout in rollouts[:2]:
        office.clock.pass_over(3.5)
        office.dispatcher.not_sent(1, [an_end(office.parcel(rollout).number, verdict=None)])
    assert office.ended == [one.episodes[0] for one in rollouts[:2]] and office.loads() == {1: 1}
    assert office.dispatcher.workers[1].is_hung and office.dispatcher.workers[1].ended == 0
    office.clock.pass_over(3.5)
    assert office.link.killed == [(1, "it gave no sign of life for 10 s")]
    office.dispatcher.not_sent(1, [an_end(99)])
    assert office.dispatcher.refused == 0, "it was no end of a worker's"


def test_one_that_is_to_go_goes_when_the_last_of_it_could_not_be_sent() -> None:
    office = Office(workers=1)
    (plain,) = office.start()
    office.dispatcher.drain(1)
    office.dispatcher.not_sent(1, [an_end(office.parcel(plain).number, verdict=None)])
    assert office.link.retired == [1] and office.has_nothing()


def test_workers_are_not_taken_for_dead_because_this_process_stood_still() -> None:
    office = Office(workers=2, lease_s=8.0)
    office.start()
    office.live(4.0, 1, 2)
    office.stand_still(3600.0)
    office.clock.pass_over(2.0)  # timers ring first, before what workers sent meanwhile is read
    assert not office.link.killed
    office.live(20.0, 1)
    assert [worker for worker, _ in office.link.killed] == [2]


def test_no_timer_is_left_of_those_that_are_gone() -> None:
    office = Office(workers=3, lease_s=8.0)
    office.dispatcher.drain(1)
    office.dispatcher.died(2, "it was killed")
    office.clock.pass_over(8.0)
    assert not office.dispatcher.workers
    assert [worker for worker, _ in office.link.killed] == [3]
    while office.clock.step():
        assert office.clock.time() <= 16.0


# -- those whose loops hang ------------------------------------------------------------------------


def test_one_whose_loop_does_not_turn_hands_back_what_it_has_not_begun_and_gets_nothing_more() -> None:
    office = Office(workers=2, slots=2, hang_s=10.0, drain_s=5.0)
    rollouts = office.start(4)
    begun, not_begun = [one for one in rollouts if office.worker(one) == 1]
    (episode,) = begun.episodes
    office.report(1, stalled_s=10.0)
    assert not office.link.taken_back, "it may be so for 10 s"
    office.report(1, stalled_s=11.0)
    office.report(1, stalled_s=12.0)
    assert office.link.taken_back == [1], "once"
    office.give_back(1, not_begun, stalled_s=13.0)
    office.start(3)
    assert office.loads() == {1: 1, 2: 2} and office.dispatcher.waiting == 4
    office.report(1, [an_end(office.parcel(begun).number)], stalled_s=14.0)
    assert office.ended == [episode], "it still brings what has ended"
    assert not office.link.killed and office.loads() == {1: 0, 2: 2}


def test_one_that_hangs_on_is_killed_and_what_it_had_begun_is_lost() -> None:
    office = Office(workers=1, hang_s=10.0, drain_s=5.0)
    (plain,) = office.start()
    office.report(1, stalled_s=11.0)
    office.report(1, stalled_s=15.0)
    assert not office.link.killed
    office.report(1, stalled_s=15.5)
    assert (
        office.link.killed
        == [(1, "its loop, a call of its engine, or reading what it was given did not go on for 16 s")]
        == office.gone
    )
    assert office.lost == [plain] and not office.dispatcher.workers


def test_one_is_not_killed_before_it_was_asked_to_hand_back() -> None:
    office = Office(workers=1, hang_s=10.0, drain_s=0.0)
    office.start()
    office.report(1, stalled_s=100.0)
    assert office.link.taken_back == [1] and not office.link.killed
    office.report(1, stalled_s=101.0)
    assert [worker for worker, _ in office.link.killed] == [1]


def test_one_that_turns_again_goes_on_being_used() -> None:
    office = Office(workers=1, slots=2, hang_s=10.0, drain_s=5.0)
    rollouts = office.start(2)
    office.report(1, stalled_s=11.0)
    office.give_back(1, rollouts[1], stalled_s=12.0)
    assert office.loads() == {1: 1} and office.dispatcher.waiting == 1
    office.report(1, stalled_s=0.0)
    assert office.loads() == {1: 2}
    assert [rollout for _, rollout, *_ in office.link.lent] == [0, 1, 1]
    office.live(100.0, 1)
    assert not office.link.killed and not office.gone
    office.report(1, stalled_s=11.0)
    assert office.link.taken_back == [1, 1], "it hangs anew"


def test_one_that_is_to_go_still_goes_after_a_hang() -> None:
    office = Office(workers=2, slots=2, hang_s=10.0)
    (plain,) = office.start()
    office.dispatcher.drain(1)
    office.report(1, stalled_s=11.0)
    office.report(1, stalled_s=0.0)
    office.start(3)
    assert office.loads() == {1: 1, 2: 2}
    office.end(plain)
    assert office.link.retired == [1] and not office.link.killed


def test_one_that_is_to_go_and_hangs_is_killed() -> None:
    office = Office(workers=1, hang_s=10.0, drain_s=5.0)
    (plain,) = office.start()
    office.dispatcher.drain(1)
    office.report(1, stalled_s=11.0)
    office.report(1, stalled_s=16.0)
    assert [worker for worker, _ in office.link.killed] == [1]
    assert office.lost == [plain] and not office.link.retired


def test_a_loop_that_turns_is_no_hang_even_if_none_is_allowed() -> None:
    office = Office(workers=1, hang_s=0.0, drain_s=0.0)
    office.start()
    office.live(5.0, 1, stalled_s=0.0)
    assert not office.link.taken_back and not office.link.killed
