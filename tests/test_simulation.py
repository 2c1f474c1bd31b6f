"""What the simulation says of whole runs agrees with what can be reckoned."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from areal_core.simulation import Costs, grow, simulate, vary
from core_audit import balanced
from simulated_runs import FREE, pauses, scenario

pytestmark = pytest.mark.any_loop

EVERYTHING = scenario(
    workers=3,
    slots_per_worker=4,
    servers=3,
    server_tokens_per_s=500.0,
    tokens=200.0,
    turns=2,
    tool_s=1.0,
    tool_sigma=1.0,
    group_size=2,
    rejected=0.1,
    failed=0.1,
    train_s=5.0,
    update_s=1.0,
    worker_mtbf_s=40.0,
    server_mtbf_s=60.0,
    server_start_s=10.0,
    max_head_offpolicyness=1,
    consumer_batch_size=4,
    on_stale="requeue",
    costs=Costs(),
)
"""All that can happen does."""


# -- what can be reckoned --------------------------------------------------------------------------


def test_slots_end_so_many_episodes_per_second_as_there_are_divided_by_their_length() -> None:
    forecast = simulate(pauses(0.5, workers=2, slots_per_worker=8))
    assert forecast.trajectories_per_s == pytest.approx(32.0, rel=0.01)
    assert forecast.slots_busy == pytest.approx(1.0, abs=0.01)
    assert forecast.bound_by == "the workers' slots"


def test_what_is_in_flight_is_the_rate_times_the_time_that_each_takes() -> None:
    forecast = simulate(
        pauses(
            2.0,
            tool_sigma=0.8,
            workers=4,
            slots_per_worker=16,
            max_concurrent_rollouts=64,
            max_head_offpolicyness=50,  # none is too old, or the longest would be missing
        )
    )
    assert forecast.in_flight / forecast.episodes_per_s == pytest.approx(2.0, rel=0.05)


def test_a_server_with_slots_gives_as_many_tokens_as_these_make() -> None:
    forecast = simulate(
        scenario(workers=2, slots_per_worker=32, servers=2, server_slots=8, token_s=0.01, tokens=50.0)
    )
    assert forecast.tokens_per_s == pytest.approx(2 * 8 / 0.01, rel=0.02)
    assert forecast.servers_busy == pytest.approx(1.0, abs=0.01)
    assert forecast.bound_by == "the servers"


def test_workers_that_know_one_server_each_know_different_ones() -> None:
    forecast = simulate(
        scenario(
            workers=4,
            slots_per_worker=4,
            servers=4,
            servers_per_worker=1,
            server_slots=2,
            token_s=0.01,
            tokens=50.0,
        )
    )
    assert forecast.tokens_per_s == pytest.approx(4 * 2 / 0.01, rel=0.03)


def test_a_server_that_slows_down_gives_each_request_what_is_left() -> None:
    in_flight, token_s, most = 50, 0.02, 1000.0
    forecast = simulate(
        scenario(
            workers=1,
            slots_per_worker=in_flight,
            servers=1,
            token_s=token_s,
            server_tokens_per_s=most,
            tokens=100.0,
        )
    )
    assert forecast.tokens_per_s == pytest.approx(in_flight / (token_s + (in_flight - 1) / most), rel=0.02)
    assert forecast.requests_per_server == pytest.approx(in_flight, rel=0.01)


@pytest.mark.parametrize("pace_sigma", [0.0, 0.8])
def test_more_workers_bring_no_less_where_servers_are_the_limit(pace_sigma: float) -> None:
    base = scenario(
        slots_per_worker=16,
        servers=2,
        server_tokens_per_s=800.0,
        tokens=100.0,
        pace_sigma=pace_sigma,
        consumer_batch_size=32,
        measured_s=60.0,
    )
    rates = [forecast.tokens_per_s for _, forecast in vary(base, "workers", (1, 2, 4, 8))]
    assert all(more >= 0.97 * fewer for fewer, more in itertools.pairwise(rates)), rates
    assert 1.2 * rates[0] < rates[-1] < 1600.0


def test_a_driver_ends_no_more_per_second_than_what_each_costs_it() -> None:
    costs = replace(FREE, driver_episode_s=0.01, driver_rollout_s=0.002)
    found = [
        simulate(pauses(0.1, workers=workers, slots_per_worker=32, measured_s=40.0, costs=costs))
        for workers in (1, 4)
    ]
    for forecast in found:
        assert forecast.episodes_per_s == pytest.approx(1 / 0.012, rel=0.03)
        assert forecast.driver_busy == pytest.approx(1.0, abs=0.01)
        assert forecast.bound_by == "the driver"
    assert found[1].driver_delay_s > 0.1


def test_a_driver_has_time_for_so_many_exchanges_with_workers_that_have_nothing_to_say() -> None:
    costs = replace(FREE, ray_driver_s=0.02)
    forecast = simulate(pauses(30.0, workers=50, slots_per_worker=1, costs=costs))
    # A sign of life of each every second, of which each takes half an exchange.
    assert forecast.driver_busy == pytest.approx(0.5, rel=0.15)


def test_looking_for_room_at_each_worker_takes_the_driver_time() -> None:
    costs = replace(FREE, driver_worker_s=0.001)
    few, many = (
        simulate(pauses(1.0, workers=workers, slots_per_worker=2, consumer_batch_size=64, costs=costs))
        for workers in (2, 20)
    )
    assert many.driver_busy > 5 * few.driver_busy > 0.0


def test_a_workers_loop_ends_no_more_per_second_than_what_each_costs_it() -> None:
    costs = replace(FREE, worker_episode_s=0.002)
    forecast = simulate(
        pauses(0.0, workers=2, slots_per_worker=8, compute_s=0.008, measured_s=20.0, costs=costs)
    )
    assert forecast.episodes_per_s == pytest.approx(200.0, rel=0.03)
    assert forecast.bound_by == "the workers' loops"


def test_a_pause_of_an_episode_takes_the_workers_loop_time() -> None:
    costs = replace(FREE, worker_pause_s=0.002)
    one = pauses(0.05, workers=1, slots_per_worker=128, compute_s=0.008, measured_s=20.0, costs=costs)
    assert simulate(one).episodes_per_s == pytest.approx(100.0, rel=0.03)
    without = simulate(replace(one, tool_s=0.0))
    assert without.episodes_per_s == pytest.approx(125.0, rel=0.03)


def test_a_loop_is_as_busy_as_its_episodes_make_it_on_average_of_all_workers() -> None:
    forecast = simulate(pauses(0.2, workers=4, slots_per_worker=5, compute_s=0.01, measured_s=20.0))
    assert 0.1 < forecast.workers_busy < 0.5
    assert forecast.workers_busy == pytest.approx(forecast.episodes_per_s * 0.01 / 4, rel=0.02)


def test_tokens_that_come_by_themselves_cost_a_workers_loop_time() -> None:
    costs = replace(FREE, worker_token_s=0.001, worker_request_s=0.05)
    forecast = simulate(
        scenario(workers=1, slots_per_worker=64, tokens=50.0, tokens_sigma=0.0, token_s=0.001, costs=costs)
    )
    assert forecast.episodes_per_s == pytest.approx(1 / (50 * 0.001 + 0.05), rel=0.03)


def test_news_of_what_episodes_do_take_the_driver_time() -> None:
    fields: dict[str, Any] = {"workers": 1, "slots_per_worker": 10, "token_s": 0.02, "tokens_sigma": 0.0}
    costs = replace(FREE, driver_stage_s=0.01)
    found = simulate(scenario(tokens=100.0, costs=costs, **fields))
    assert found.driver_busy == pytest.approx(0.01 * 10 / 2, rel=0.1)


def test_a_bound_of_0_waits_for_the_slowest_of_each_batch() -> None:
    forecast = simulate(pauses(1.0, workers=1, slots_per_worker=16, max_head_offpolicyness=0, train_s=3.0))
    assert forecast.trajectories_per_s == pytest.approx(16 / 4.0, rel=0.02)
    assert forecast.trainer_busy == pytest.approx(0.75, abs=0.02)
    assert forecast.staleness.staleness_max == 0


def test_the_rate_is_from_batch_to_batch_also_where_the_first_comes_after_the_warm_up() -> None:
    late = pauses(25.0, workers=1, slots_per_worker=16, max_head_offpolicyness=0, train_s=10.0)
    forecast = simulate(late)  # at 25 s, 60 s and 95 s
    assert forecast.trajectories_per_s == pytest.approx(16 / 35, rel=0.02)
    only_one = simulate(replace(late, measured_s=30.0))
    assert only_one.trajectories_per_s == pytest.approx(16 / 25, rel=0.02)


def test_a_trainer_that_is_slow_is_the_limit() -> None:
    forecast = simulate(pauses(1.0, workers=2, slots_per_worker=16, train_s=9.0, update_s=1.0))
    assert forecast.trajectories_per_s == pytest.approx(1.6, rel=0.02)
    assert forecast.bound_by == "the trainer"


def test_the_bound_on_staleness_holds_and_is_made_use_of() -> None:
    for bound in (0, 1, 3):
        found = simulate(
            scenario(workers=2, tokens=300.0, train_s=4.0, update_s=0.5, max_head_offpolicyness=bound)
        )
        assert found.staleness.staleness_max == bound


def test_tokens_that_are_too_old_are_masked_where_generation_goes_on_with_new_weights() -> None:
    fields: dict[str, Any] = {"workers": 2, "tokens": 400.0, "train_s": 2.0, "max_head_offpolicyness": 1}
    goes_on = simulate(scenario(update_s=0.5, **fields))
    does_not = simulate(scenario(update_s=0.0, **fields))
    assert goes_on.staleness.tokens_masked > 0.02 * goes_on.staleness.tokens_trained
    assert does_not.staleness.tokens_masked == 0  # all of a reply are as old
    # One that asks again with each new version is not given up while it may bring something young enough.
    assert goes_on.wasted_old == 0.0 < does_not.wasted_old


def test_nothing_is_generated_while_weights_are_updated() -> None:
    forecast = simulate(
        scenario(
            workers=1,
            slots_per_worker=8,
            token_s=0.01,
            tokens=100.0,
            tokens_sigma=0.0,
            update_s=1.0,
            consumer_batch_size=64,
            max_concurrent_rollouts=8,
            max_head_offpolicyness=20,
        )
    )
    # Eight at a time make a batch in 8 s, and then they stand still for one.
    assert forecast.tokens_per_s == pytest.approx(800.0 * 8 / 9, rel=0.02)


# -- failures --------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_missed_until_the_next_has_started() -> None:
    deaths = tuple(21.0 + 10.0 * number for number in range(10))
    forecast = simulate(
        pauses(
            0.2,
            workers=2,
            slots_per_worker=8,
            worker_deaths_s=deaths,
            worker_death_seen_s=1.0,
            worker_start_s=4.0,
        )
    )
    assert forecast.deaths == 10
    # One of two is away for 5 of 10 seconds, and what it had played for 0.1 s on average is lost.
    assert forecast.trajectories_per_s == pytest.approx(80.0 * 0.75, rel=0.03)


def test_what_a_dead_worker_had_runs_again_and_counts_as_wasted() -> None:
    forecast = simulate(pauses(4.0, workers=2, slots_per_worker=8, worker_mtbf_s=15.0, worker_start_s=1.0))
    assert forecast.ledger.lost > 20
    assert 0.05 < forecast.wasted_lost < 0.5
    assert balanced(forecast.ledger)
    assert simulate(pauses(4.0, workers=2, slots_per_worker=8)).wasted_lost == 0.0


def test_what_is_lost_too_often_fails() -> None:
    forecast = simulate(
        pauses(
            30.0,
            workers=2,
            slots_per_worker=4,
            consumer_batch_size=2,
            worker_mtbf_s=6.0,
            worker_start_s=1.0,
        )
    )
    assert forecast.ledger.failed > 0


def test_a_server_that_dies_loses_no_token() -> None:
    fields: dict[str, Any] = {
        "workers": 2,
        "slots_per_worker": 8,
        "servers": 2,
        "tokens": 300.0,
        "consumer_batch_size": 8,
    }
    safe = simulate(scenario(**fields))
    dying = simulate(scenario(server_mtbf_s=10.0, server_start_s=2.0, **fields))
    assert dying.ledger.failed == dying.ledger.lost == 0
    # Nothing is generated twice, and a request gets a server at once as long as there is one.
    assert 0.8 * safe.tokens_per_s < dying.tokens_per_s <= 1.02 * safe.tokens_per_s
    assert dying.staleness.tokens_trained == pytest.approx(safe.staleness.tokens_trained, rel=0.2)


def test_shares_of_episodes_that_fail_or_are_rejected_come_out_as_such() -> None:
    ledger = simulate(pauses(0.5, workers=2, slots_per_worker=8, failed=0.2, rejected=0.3)).ledger
    ended = ledger.accepted + ledger.rejected + ledger.failed
    assert ledger.failed / ended == pytest.approx(0.2, abs=0.03)
    assert ledger.rejected / ended == pytest.approx(0.3, abs=0.03)


# -- runs as a whole -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_in_the_end_every_rollout_is_somewhere_whatever_happened(seed: int) -> None:
    forecast = simulate(replace(EVERYTHING, seed=seed))
    assert balanced(forecast.ledger), forecast.ledger
    assert forecast.ledger.submitted > 50
    assert forecast.ledger.collected >= forecast.staleness.delivered > 0
    assert forecast.staleness.staleness_max <= 1
    assert forecast.deaths > 0


def test_the_same_seed_gives_the_same_forecast_and_another_another() -> None:
    assert simulate(EVERYTHING) == simulate(EVERYTHING) != simulate(replace(EVERYTHING, seed=1))


@pytest.mark.parametrize("field", ["driver_busy", "workers_busy", "slots_busy", "trainer_busy", "wasted_old"])
def test_a_share_is_one(field: str) -> None:
    assert 0.0 <= getattr(simulate(EVERYTHING), field) <= 1.0


def test_groups_are_played_as_a_whole() -> None:
    forecast = simulate(pauses(1.0, workers=2, slots_per_worker=8, group_size=4, consumer_batch_size=4))
    assert forecast.trajectories_per_s == pytest.approx(16 / 4, rel=0.05)
    # Each has its members, and what judges them; some of which ended just before the measuring, or after it.
    assert forecast.episodes_per_s == pytest.approx(5 * forecast.trajectories_per_s, rel=0.1)


def test_hundreds_of_workers_go_as_one_does() -> None:
    base = pauses(5.0, workers=1, slots_per_worker=16, consumer_batch_size=16, costs=Costs())
    base = replace(base, warm_up_s=2.0, measured_s=4.0)
    [(_, one), (_, many)] = grow(base, (1, 300))
    assert many.workers == 300
    assert many.in_flight > 200 * one.in_flight
