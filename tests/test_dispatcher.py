"""Which worker plays what: one law of the dispatcher in each test."""

from __future__ import annotations

import asyncio

import pytest

from areal_core._executor.rollout import Rollout
from areal_core._record import ENDED, FAR, PLAYING, REWARDED, WAITING_FOR_ROOM
from lending import BROUGHT, Office, an_end

pytestmark = pytest.mark.any_loop


# -- who gets how much -----------------------------------------------------------------------------


def test_what_waits_is_shared_evenly_in_its_order() -> None:
    office = Office(workers=3, slots=10)
    office.start(8)
    assert office.loads() == {1: 3, 2: 3, 3: 2}
    for worker in (1, 2, 3):
        theirs = [rollout for lender, rollout, *_ in office.link.lent if lender == worker]
        assert theirs == sorted(theirs)
    first = [next(rollout for lender, rollout, *_ in office.link.lent if lender == one) for one in (1, 2, 3)]
    assert first == [0, 1, 2]


def test_whoever_has_less_gets_more() -> None:
    office = Office(workers=2, slots=10)
    rollouts = office.start(6)
    office.end(*[one for one in rollouts if office.worker(one) == 1])
    office.start(3)
    assert office.loads() == {1: 3, 2: 3}


def test_those_that_have_as_much_take_turns() -> None:
    office = Office(workers=3, slots=10)
    for _ in range(6):
        office.end(*office.start())
    assert [worker for worker, *_ in office.link.lent] == [1, 2, 3, 1, 2, 3]


def test_no_worker_gets_more_than_it_can_play_as_long_as_nothing_ends_there() -> None:
    office = Office(workers=2, slots=2, most_ahead=8)
    rollouts = office.start(7)
    assert office.loads() == {1: 2, 2: 2}
    assert office.dispatcher.waiting == 3
    assert [one.episodes[0].record.stage for one in rollouts] == [FAR] * 4 + [WAITING_FOR_ROOM] * 3
    assert [one.episodes[0].record.worker for one in rollouts] == [1, 2, 1, 2, None, None, None]


def test_an_end_makes_room_for_the_next() -> None:
    office = Office(workers=1, slots=1)
    rollouts = office.start(2)
    office.end(rollouts[0])
    assert [rollout for _, rollout, *_ in office.link.lent] == [0, 1]
    assert office.loads() == {1: 1}


@pytest.mark.parametrize(("most_ahead", "ahead"), [(100, 5), (3, 3), (0, 0)])
def test_a_worker_holds_ahead_what_ends_there_while_an_exchange_is_under_way(
    most_ahead: int, ahead: int
) -> None:
    office = Office(workers=1, slots=100, most_ahead=most_ahead, exchange_s=0.02)
    rollouts = office.start(1200)
    for second in range(10):  # 100 end in each
        office.clock.pass_over(1.0)
        ended = rollouts[100 * second : 100 * (second + 1)]
        office.report(1, [an_end(office.parcel(one).number) for one in ended])
    assert office.dispatcher.workers[1].rate == pytest.approx(100, abs=0.1)
    assert office.loads() == {1: 100 + ahead}


def test_a_worker_holds_more_ahead_where_many_are_heard_of_seldom() -> None:
    office = Office(workers=50, slots=10, most_ahead=100, exchange_s=0.05)
    office.start(1000)
    worker = office.dispatcher.workers[1]
    for _ in range(10):  # 100 end in each second
        office.clock.pass_over(0.1)
        office.report(1, [an_end(number) for number in list(worker.parcels)[:10]])
    assert office.dispatcher.pace.linger_s == 0.2
    assert 90 < worker.rate < 100
    assert office.loads()[1] == 10 + 25, "what ends in a quarter of a second"


def test_a_worker_where_nothing_ends_any_more_holds_nothing_ahead() -> None:
    office = Office(workers=1, slots=4, most_ahead=100, exchange_s=1.0)
    rollouts = office.start(8)
    office.clock.pass_over(1.0)
    office.report(1, [an_end(office.parcel(one).number) for one in rollouts[:4]])
    assert office.dispatcher.workers[1].rate > 2
    office.live(30.0, 1)
    assert office.dispatcher.workers[1].rate < 0.001
    office.end(*rollouts[4:])
    office.live(30.0, 1)
    office.start(20)
    assert office.loads() == {1: 5}, "but for one, which is less than one in an exchange"


def test_what_a_worker_holds_ahead_follows_what_ends_there_within_half_a_second() -> None:
    office = Office(workers=1, slots=100, most_ahead=1000, exchange_s=0.02)
    rollouts = office.start(2000)
    for turn in range(10):  # 1667 a second
        office.clock.pass_over(0.06)
        ended = rollouts[100 * turn : 100 * (turn + 1)]
        office.report(1, [an_end(office.parcel(one).number) for one in ended])
    assert 1450 < office.dispatcher.workers[1].rate < 1667
    assert 172 < office.loads()[1] <= 184


def test_many_that_end_at_once_are_no_rate() -> None:
    office = Office(workers=1, slots=100, most_ahead=1000, exchange_s=0.05)
    rollouts = office.start(400)
    for turn in range(2):
        office.clock.pass_over(1.0 - 0.001 * turn)
        office.report(1, [])
        office.clock.pass_over(0.001)
        ended = rollouts[100 * turn : 100 * (turn + 1)]
        office.report(1, [an_end(office.parcel(one).number) for one in ended])
        assert office.dispatcher.workers[1].rate <= 100
    office.clock.pass_over(1.0)
    office.report(1, [])
    assert 90 < office.dispatcher.workers[1].rate < 100


def test_free_slots_come_before_what_others_may_hold() -> None:
    office = Office(workers=2, slots=4, most_ahead=100, exchange_s=10.0)
    rollouts = office.start(8)
    office.clock.pass_over(1.0)
    of_the_first = [one for one in rollouts if office.worker(one) == 1]
    office.report(1, [an_end(office.parcel(one).number) for one in of_the_first])
    assert office.dispatcher.workers[1].rate > 1
    office.end(*[one for one in rollouts if one not in of_the_first][:2])
    assert office.loads() == {1: 0, 2: 2}
    office.start(4)
    assert office.loads() == {1: 3, 2: 3}
    office.start(3)
    assert office.loads()[1] >= 4 and office.loads()[2] >= 4 and sum(office.loads().values()) == 9


def test_what_nobody_can_play_waits_for_a_worker_to_join() -> None:
    office = Office(workers=0)
    office.start(3)
    assert office.dispatcher.waiting == 3 and not office.link.lent
    office.dispatcher.joined(1)
    office.dispatcher.go_on()
    assert office.loads() == {1: 2} and office.dispatcher.waiting == 1


# -- groups ----------------------------------------------------------------------------------------


def test_a_group_goes_to_one_worker_as_a_whole_with_its_later_members_and_its_judge() -> None:
    office = Office(workers=2, slots=2)
    (group,) = office.start(group_size=4, members=3)
    assert office.link.lent == [(1, 0, True, [0, 1, 2])], "though it can play two at once"
    office.start_more(group)
    office.dispatcher.go_on()
    for place in range(4):
        office.end(group, place=place)
    office.judge(group)
    assert office.link.lent[1:] == [(1, 0, False, [3]), (1, 0, False, [-1])]
    office.end(group, place=-1)
    assert [one.sample_idx for one in office.ended] == [0, 1, 2, 3, -1]
    office.finish(group)
    assert office.link.forgotten == [(1, [1])]
    assert office.has_nothing()


def test_a_worker_keeps_what_members_brought_until_their_group_has_ended() -> None:
    office = Office(workers=1, slots=2)
    (group,) = office.start(group_size=3, members=1)
    office.end(group)
    office.live(10.0, 1)
    assert not office.link.forgotten, "two members have no slot so far"
    office.start_more(group, 2)
    office.dispatcher.go_on()
    office.end(group, place=1)
    office.end(group, place=2, verdict=None, error=ValueError())
    office.live(10.0, 1)
    assert not office.link.forgotten
    office.finish(group)
    assert office.link.forgotten == [(1, [1])] and office.has_nothing()


# -- cancelling ------------------------------------------------------------------------------------


def test_one_that_waits_ends_as_cancelled_at_once_and_is_forgotten() -> None:
    office = Office(workers=1, slots=1)
    running, waiting, other = office.start(3)
    episode = waiting.episodes[0]
    office.cancel(waiting)
    assert office.ended == [episode]
    assert isinstance(episode.error, asyncio.CancelledError)
    assert str(episode.error) == "rollout 1 was cancelled before it started"
    assert episode.record.stage == ENDED and episode.job is None
    assert office.dispatcher.waiting == 1
    office.end(running)
    assert [rollout for _, rollout, *_ in office.link.lent] == [running.task_id, other.task_id]


def test_a_group_that_waits_ends_as_cancelled_member_by_member() -> None:
    office = Office(workers=0)
    (group,) = office.start(group_size=3)
    office.cancel(group)
    assert [one.sample_idx for one in office.ended] == [0, 1, 2]
    assert office.dispatcher.waiting == 0 and office.has_nothing()


def test_those_that_are_cancelled_while_all_workers_are_full_are_not_kept() -> None:
    office = Office(workers=1, slots=1)
    office.start()
    for _ in range(100):
        office.cancel(*office.start())
    assert len(office.ended) == 100
    assert len(office._parcels()) == 1, "but for the one that runs"


def test_one_that_was_lent_is_cancelled_by_its_worker() -> None:
    office = Office(workers=2)
    plain, group = *office.start(), *office.start(group_size=2)
    office.cancel(plain)
    office.cancel(group)
    office.dispatcher.go_on()
    assert office.link.cancelled == [(1, [(1, 0)]), (2, [(2, 0), (2, 1)])]
    assert not office.ended
    office.end(plain, verdict=None, error=asyncio.CancelledError("there"))
    assert str(plain.episodes[0].error) == "there"


def test_one_that_has_ended_is_not_cancelled() -> None:
    office = Office(workers=1)
    (plain,) = office.start()
    episode = plain.episodes[0]
    office.end(plain)
    office.dispatcher.cancel(episode)
    office.dispatcher.go_on()
    assert not office.link.cancelled and office.ended == [episode]


def test_a_member_that_is_cancelled_before_it_was_sent_leaves_nothing_at_its_groups_worker() -> None:
    office = Office(workers=1)
    (group,) = office.start(group_size=2, members=1)
    office.end(group)
    office.start_more(group)
    office.cancel(group)
    office.finish(group)
    assert [one.sample_idx for one in office.ended] == [0, 1]
    assert [places for *_, places in office.link.lent] == [[0]]
    assert office.link.forgotten == [(1, [1])] and office.has_nothing()


# -- what comes back -------------------------------------------------------------------------------


def test_an_end_is_told_as_the_worker_tells_it() -> None:
    office = Office()
    good, bad, late = office.start(3)
    fates = {one: one.episodes[0] for one in (good, bad, late)}
    error, timeout = ValueError("no"), TimeoutError("late")
    office.end(good, seconds=3.0, figures=(4, 7, 1.0, 2.0, 3.0))
    office.end(bad, verdict=None, error=error)
    office.end(late, verdict=None, error=timeout, timed_out=True)
    verdict, record = fates[good].verdict, fates[good].record
    assert verdict is not None and verdict.trajectory is BROUGHT
    assert (fates[good].seconds, record.segments, record.newest_version) == (3.0, 4, 7)
    assert (record.generate_s, record.reward_s, record.accept_s) == (1.0, 2.0, 3.0)
    assert (fates[bad].error, fates[bad].timed_out) == (error, False)
    assert (fates[late].error, fates[late].timed_out) == (timeout, True)
    assert office.dispatcher.workers[1].ended + office.dispatcher.workers[2].ended == 3
    assert office.has_nothing() and office.dispatcher.refused == 0


def test_a_stage_is_told_with_its_age_and_its_time_is_not_counted_twice() -> None:
    office = Office(workers=1)
    (plain,) = office.start()
    record = plain.episodes[0].record
    parcel = office.parcel(plain).number
    office.clock.pass_over(5.0)
    office.report(1, stages=[(parcel, 0, (REWARDED, None, 2.0, 3, 7)), (99, 0, (REWARDED, None, 0.0, 1, 1))])
    assert (record.stage, record.server, record.since) == (REWARDED, None, 3.0)
    assert (record.segments, record.newest_version, record.worker) == (3, 7, 1)
    office.end(plain, figures=(3, 7, 0.0, 2.5, 0.0))
    assert (record.stage, record.reward_s) == (ENDED, 2.5)


def test_what_was_never_lent_is_refused_and_counted() -> None:
    office = Office(workers=2)
    (plain,) = office.start()
    (group,) = office.start(group_size=2, members=1)
    office.report(1, [an_end(99), an_end(office.parcel(plain).number, place=1)])
    office.report(2, [an_end(office.parcel(plain).number)])
    assert office.dispatcher.refused == 3, "no such parcel, no such place, not that worker's"
    office.end(plain)
    office.report(1, [an_end(1)])
    assert office.dispatcher.refused == 4, "it had ended"
    assert len(office.ended) == 1 and office.loads() == {1: 0, 2: 1}
    office.report(office.worker(group), returned=[(99, 0), (1, 0), (office.parcel(group).number, 1)])
    assert office.loads() == {1: 0, 2: 1} and not office.dispatcher.waiting


# -- death -----------------------------------------------------------------------------------------


def test_a_workers_death_loses_exactly_what_it_had_each_once() -> None:
    office = Office(workers=2, slots=4)
    plains = office.start(3)
    groups = office.start(2, group_size=2)
    ended = next(one for one in plains if office.worker(one) == 1)
    theirs = [one for one in (*plains, *groups) if office.worker(one) == 1 and one is not ended]
    office.end(ended)
    office.dispatcher.died(1, "it was killed")
    assert office.lost == theirs and len(theirs) == 2
    assert office.gone == [(1, "it was killed")]
    assert office.dispatcher.lost == 2 and list(office.dispatcher.workers) == [2]
    office.dispatcher.died(1, "it was killed")
    assert office.lost == theirs and len(office.gone) == 1 and office.dispatcher.dead == 1


def test_what_was_lost_runs_again_elsewhere_and_its_former_worker_is_not_heard() -> None:
    office = Office(workers=2)
    (plain,) = office.start()
    before, episode = office.parcel(plain).number, plain.episodes[0]
    office.dispatcher.died(1, "it was silent")
    office.run_again(plain)
    assert office.worker(plain) == 2 and office.parcel(plain).number != before
    office.report(1, [an_end(before)], stalled_s=1000.0)
    office.report(2, [an_end(before)])
    assert office.dispatcher.refused == 2 and not office.ended
    office.end(plain)
    assert office.ended == [*plain.episodes] and episode not in office.ended
    assert office.has_nothing()


def test_a_group_between_its_members_is_lost_with_what_they_brought() -> None:
    office = Office(workers=1)
    (group,) = office.start(group_size=2, members=1)
    office.end(group)
    office.dispatcher.died(1, "it was killed")
    assert office.lost == [group] and office.has_nothing()
    assert not office.unbegun, "one of it had begun"


def test_of_what_is_lost_that_had_not_begun_which_was_held_beyond_the_slots() -> None:
    office = Office(workers=1, slots=2, most_ahead=3, exchange_s=10.0)
    begun, ahead = lend_ahead(office)
    office.dispatcher.died(1, "it was killed")
    assert office.lost == [*begun, *ahead] and office.unbegun == ahead


def test_what_a_worker_said_has_begun_had_begun_with_all_before_it() -> None:
    office = Office(workers=1, slots=2, most_ahead=3, exchange_s=10.0)
    _, (third, fourth, fifth) = lend_ahead(office)
    office.report(1, stages=[(office.parcel(fourth).number, 0, (PLAYING, None, 0.0, 0, None))])
    office.dispatcher.died(1, "it was killed")
    assert len(office.lost) == 5 and office.unbegun == [fifth] and third in office.lost


def test_what_comes_after_an_end_has_begun_in_its_place() -> None:
    office = Office(workers=1, slots=2, most_ahead=3, exchange_s=10.0)
    (first, _), (third, *others) = lend_ahead(office)
    office.end(first)
    office.dispatcher.died(1, "it was killed")
    assert office.unbegun == others and third in office.lost


def lend_ahead(office: Office) -> tuple[list[Rollout], list[Rollout]]:
    """Have a worker with two slots hold three more; return what has begun, and what has not."""
    earlier = office.start(2)
    office.clock.pass_over(1.0)
    office.end(*earlier)
    rollouts = office.start(5)
    assert office.loads() == {1: 5}
    return rollouts[:2], rollouts[2:]


def test_a_group_that_has_ended_is_not_lost() -> None:
    office = Office(workers=1)
    (group,) = office.start(group_size=2)
    office.end(group, place=0)
    office.end(group, place=1)
    group.forget_episodes()
    office.dispatcher.died(1, "it was killed")
    assert not office.lost and office.has_nothing()


def test_nothing_more_is_said_to_a_worker_that_died_in_the_meantime() -> None:
    office = Office(workers=1)
    (plain,) = office.start()
    (group,) = office.start(group_size=2, members=1)
    office.start_more(group)
    office.cancel(plain)
    lent = list(office.link.lent)
    office.dispatcher.died(1, "it was killed")
    office.dispatcher.go_on()
    assert office.link.lent == lent and not office.link.cancelled
    assert office.lost == [plain, group] and office.has_nothing()


def test_a_judge_that_was_about_to_begin_when_its_worker_died_goes_nowhere() -> None:
    office = Office(workers=2)
    (group,) = office.start(group_size=2)
    office.end(group, place=0)
    office.end(group, place=1)
    office.dispatcher.died(1, "it was killed")
    office.judge(group)
    assert office.lost == [group]
    assert [places for *_, places in office.link.lent] == [[0, 1]] and office.has_nothing()
