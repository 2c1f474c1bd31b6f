"""Scenarios, calibration, command and picture: what is simulated is said, and told, as it should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from areal_core._simulation import calibration
from areal_core._simulation.growing import changed
from areal_core._simulation.items import Items
from areal_core.simulation import Costs, Forecast, Scenario, calibrate, draw, grow, main
from simulated_runs import pauses, scenario

pytestmark = pytest.mark.any_loop

# -- scenarios -------------------------------------------------------------------------------------


def test_a_scenario_grows_in_proportion() -> None:
    base = scenario(
        workers=2, servers=3, consumer_batch_size=10, max_concurrent_rollouts=20, server_tokens_per_s=100.0
    )
    grown = base.scaled(20)
    assert (grown.workers, grown.servers, grown.slots) == (20, 30, base.slots)
    assert grown.config.consumer_batch_size == 100
    assert grown.config.max_concurrent_rollouts == 200
    assert scenario(workers=2).scaled(20).servers == 0


def test_slots_are_as_many_as_the_executor_would_take() -> None:
    assert scenario(workers=3, consumer_batch_size=10, max_head_offpolicyness=0).slots == 4
    assert scenario(workers=3, max_concurrent_rollouts=7).slots == 3
    assert scenario(workers=3, slots_per_worker=9).slots == 9


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("workers", lambda one: one.workers),
        ("max_head_offpolicyness", lambda one: one.config.max_head_offpolicyness),
        ("driver_episode_s", lambda one: one.costs.driver_episode_s),
    ],
)
def test_a_field_is_changed_wherever_it_is(name: str, read: Callable[[Scenario], float]) -> None:
    assert read(changed(scenario(), name, 5)) == 5


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"workers": 0}, "workers=0 is below 1"),
        ({"measured_s": 0.0}, "measured_s=0 leaves no time"),
        ({"failed": 0.5, "rejected": 0.5}, "leave nothing to train on"),
        ({"server_slots": 4}, "servers=0 has tokens for all"),
        ({"worker_deaths_s": (-1.0,)}, "worker_deaths_s=-1.0 is out of range"),
    ],
)
def test_a_scenario_that_cannot_be_says_why(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        Scenario(**fields)


def test_a_scenario_wants_a_config_and_costs_of_their_types() -> None:
    with pytest.raises(TypeError, match="give an InferenceEngineConfig"):
        Scenario(config=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give Costs"):
        Scenario(costs=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'wrkers' is no field"):
        changed(Scenario(), "wrkers", 1)


def test_episodes_are_as_long_and_end_as_often_as_they_are_to() -> None:
    drawn = Items(
        scenario(
            tokens=200.0, tokens_sigma=0.5, turns=2, tool_s=3.0, tool_sigma=1.0, consumer_batch_size=4000
        )
    )
    parts = [part for [part] in next(iter(drawn))]
    assert sum(2 * part.tokens for part in parts) / len(parts) == pytest.approx(200.0, rel=0.05)
    assert sum(2 * part.tool_s for part in parts) / len(parts) == pytest.approx(3.0, rel=0.1)
    assert {len(part.paces) for part in parts} == {2}


def test_no_reply_is_longer_than_where_it_is_cut_and_no_pace_slower_than_its_cap() -> None:
    drawn = Items(
        scenario(tokens=100.0, tokens_most=120, pace_sigma=2.0, pace_cap=5.0, consumer_batch_size=500)
    )
    parts = [part for [part] in next(iter(drawn))]
    assert max(part.tokens for part in parts) == 120
    assert max(part.paces[0] for part in parts) == 5.0


# -- what is measured, printed and drawn -----------------------------------------------------------


def test_what_the_code_costs_here_is_measured_and_what_ray_does_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"_FEW": 256, "_MANY": 1024, "_PAUSES": 256, "_WORKERS": 100, "_REQUESTS": 8, "_LONG": 40}
    for name, value in sizes.items():
        monkeypatch.setattr(calibration, name, value)
    found = calibrate(Costs(ray_driver_s=0.5, transport_s=0.25))
    assert (found.ray_driver_s, found.transport_s) == (0.5, 0.25)
    for name in ("driver_rollout_s", "driver_episode_s", "worker_episode_s"):
        assert 0.0 < getattr(found, name) < 0.01, name
    for name in Costs.__dataclass_fields__:
        assert 0.0 <= getattr(found, name) < 1.0, name


def test_the_command_prints_a_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--measured-s", "40", "--warm-up-s", "20", "--tokens", "100", "--workers", "3"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^bound by +the trainer$", printed, re.MULTILINE)
    assert re.search(r"^3 workers +loops busy", printed, re.MULTILINE)


def test_the_command_prints_a_line_for_each_value_and_draws_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    arguments = ["--measured-s=20", "--warm-up-s=5", "--tokens=50", f"--plot={picture}"]
    assert main([*arguments, "--vary", "train_s=1,5"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "train_s"
    assert [line.split()[0] for line in lines] == ["1", "5"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--workers", "0"], "workers=0 is below 1"),
        (["--vary", "nothing=1"], "'nothing' is no field"),
        (["--vary", "workers="], "names no values"),
        (["--grow", "0"], "no list of numbers from 1 on"),
        (["--on-stale", "whatever"], "on_stale='whatever' is none of"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_growth_is_drawn_beside_what_it_would_be_without_a_limit(tmp_path: Path) -> None:
    found: list[tuple[float, Forecast]] = list(
        grow(pauses(1.0, workers=1, measured_s=4.0, warm_up_s=1.0), (1, 30))
    )
    draw({"one": found, "other": found}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
