"""Descriptors, threads or room in files run out at every moment of an act: see `scarcity`."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from children import RunScript
from reused_servers import ReusedServer

PLAY = """
import sys
sys.path.insert(0, {tests!r})
import scarce_acts
scarce_acts.main()
"""


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("act", "shortage"),
    [
        *itertools.product(["runner"], ["descriptors", "one_thread", "threads"]),
        *itertools.product(["rollouts"], ["descriptors", "one_thread"]),
    ],
)
def test_what_is_short_is_told_and_nothing_is_lost_or_left(
    run_script: RunScript, chatting_server: ReusedServer, tmp_path: Path, act: str, shortage: str
) -> None:
    play(run_script, act, shortage, chatting_server.addr, tmp_path)


@pytest.mark.any_loop
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("act", "shortage"),
    [
        *itertools.product(["offloading"], ["descriptors", "one_thread", "threads"]),
        *itertools.product(["agents"], ["descriptors", "one_thread"]),
    ],
)
def test_what_is_short_beside_the_loop_is_told_and_nothing_is_lost_or_left(
    run_script: RunScript, chatting_server: ReusedServer, tmp_path: Path, act: str, shortage: str
) -> None:
    play(run_script, act, shortage, chatting_server.addr, tmp_path)


@pytest.mark.any_loop
@pytest.mark.timeout(150)
@pytest.mark.parametrize("shortage", ["descriptors", "one_thread", "threads", "room"])
@pytest.mark.parametrize("act", ["dump", "journal", "training"])
def test_what_is_short_costs_no_file_what_it_had(
    run_script: RunScript, tmp_path: Path, act: str, shortage: str
) -> None:
    play(run_script, act, shortage, "nowhere", tmp_path)


def play(run_script: RunScript, act: str, shortage: str, addr: str, directory: Path) -> None:
    script = PLAY.format(tests=str(Path(__file__).parent))
    child = run_script(script, act, shortage, addr, str(directory), timeout=120.0)
    assert (child.stderr, child.returncode) == ("", 0)
    assert child.stdout.startswith("untouched from "), child.stdout
    assert child.stdout != "untouched from 0 on\n", "it was never short"
