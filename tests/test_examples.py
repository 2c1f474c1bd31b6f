"""The examples run as a reader runs them, and say what they promise."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from children import STRICT, RunScript, StartScript

EXAMPLES = Path(__file__).parent.parent / "examples"

# An example takes the default loop; it gets asyncio's when uvloop cannot be imported.
ON_THE_LOOP = """
    import os, runpy, sys

    if os.environ["AREAL_TEST_LOOP"] == "asyncio":
        sys.modules["uvloop"] = None
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
FELL_BACK = re.compile(r"uvloop_not_used error=.* instead=asyncio\n")

# What is written to its stdin is typed at the example's terminal.
IN_A_TERMINAL = """
    import os, pty, sys

    sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""

RunExample = Callable[[str], str]


@pytest.fixture
def run_example(run_script: RunScript, loop_name: str) -> RunExample:
    """Run an example in its quick form; see that it succeeds and complains of nothing; return its output."""

    def run(name: str) -> str:
        done = run_script(ON_THE_LOOP, str(EXAMPLES / name), "--quick")
        said = FELL_BACK.sub("", done.stderr) if loop_name == "asyncio" else done.stderr
        assert said == ""
        assert done.returncode == 0
        return done.stdout

    return run


def test_the_main_job_finds_every_rollout_in_its_table(run_example: RunExample) -> None:
    output = run_example("drive_rollouts.py")

    assert re.findall(r"^epoch (\d)  (\d+) rollouts in ", output, re.MULTILINE) == [
        ("1", "120"),
        ("2", "120"),
    ]
    outcomes = _table(output)
    assert outcomes.pop("all") == sum(outcomes.values()) == 240
    # On a busy machine more of them time out, the refused ones too.
    assert 1 <= outcomes["failed"] <= 6
    assert 1 <= outcomes["cancelled"] <= 16
    assert outcomes["completed"] >= 1
    assert "  refused: text='' is not a string" in output
    assert "240 submitted = 0 pending + 0 running\n" in output
    assert "+ 0 finished + 240 collected + 0 discarded\n" in output
    assert re.search(r"^latency      p50 \d+\.\d+ s, p90 \d+\.\d+ s, p99 \d+\.\d+ s, ", output, re.MULTILINE)
    opened = re.search(r"^connections  (\d+) opened for (\d+) requests", output, re.MULTILINE)
    assert opened
    cut_short = outcomes["timed_out"] + outcomes["cancelled"]
    assert int(opened[1]) <= 64 + cut_short
    assert 240 - cut_short <= int(opened[2]) <= 240
    assert output.endswith(" were lost.\n")
    assert " 0 were lost." in output


@pytest.mark.any_loop
def test_the_main_job_in_a_terminal_shows_its_progress_and_accounts_for_all_after_ctrl_c(
    start_script: StartScript,
) -> None:
    script = start_script(IN_A_TERMINAL, sys.executable, *STRICT, str(EXAMPLES / "drive_rollouts.py"))
    assert script.stdin
    assert script.stdout
    for line in script.stdout:  # a carriage return ends one too
        if re.match(r"\x1b\[Kepoch 1  \[#+\.+\]  \d+ ended, \d+ run", line):
            break
    output, stderr = script.communicate("\x03", timeout=20.0)

    assert stderr == ""
    assert script.returncode == 130
    assert "Traceback" not in output
    assert "interrupted; this is what there was until then:" in output
    outcomes = _table(output)
    assert outcomes.pop("all") == sum(outcomes.values())
    assert outcomes["cancelled"] >= 1


def test_each_restarted_runner_has_clients_of_its_own(run_example: RunExample) -> None:
    output = run_example("restart_runners.py")

    lives = re.findall(r"^ +(\d+) +(\d+) +(\d+) +(\d+) +(\w+) +(\d+)$", output, re.MULTILINE)
    assert [life[:5] for life in lives] == [(str(n), "80", "1", "1", "yes") for n in range(1, 5)]
    assert all(1 <= int(life[5]) <= 8 for life in lives)
    assert "4 runners in one thread were given 4 sessions, each its own: 320 answers came over " in output
    assert output.endswith("Threads that run now: 1.\n")


def test_async_work_from_sync_code_shows_each_outcome_with_its_error(run_example: RunExample) -> None:
    output = run_example("async_from_sync.py")

    shown = [line for line in output.splitlines() if line and not line.startswith("#")]
    # On a busy machine the quick task, too, may come after the wait.
    assert re.fullmatch(
        r"wait raises TimeoutError\('Timed out waiting for 2 results, only received [01]\.'\)", shown.pop(2)
    )
    assert shown.pop().startswith("RunnerStats(submitted=9, pending=0, running=0, finished=0, collected=9, ")
    assert shown == [
        "run gives 6",
        "run raises ValueError('there is no text')",
        "wait gives [1, 3]",
        "task 1 completed: 3",
        "task 2 failed: ValueError('there is no text')",
        "task 3 timed_out: TimeoutError('task 3 exceeded its deadline of 0.1 s')",
        "task 4 cancelled: CancelledError('task 4 was cancelled')",
        "as_completed gives 4",
        "as_completed gives 2",
        "as_completed gives 1",
    ]


def test_a_trainer_that_is_killed_again_and_again_trains_on_every_item_once(run_example: RunExample) -> None:
    output = run_example("survive_a_kill.py")

    killed = re.findall(r"^killed [\d.]+ s after it began: \d+ items trained on$", output, re.MULTILINE)
    assert output.endswith(f"{len(killed)} kills; 0 of 80 items are missing, and 0 were trained on twice\n")
    assert killed


def test_no_conversation_is_lost_with_its_server(run_example: RunExample) -> None:
    output = run_example("survive_a_server.py")

    assert re.search(r" was killed in the middle of \d+ generations\n", output)
    assert "\nepisodes     240 completed, 0 not\n" in output
    assert re.search(
        r"^served       \d+ replies by the steady server, [1-9]\d* by the other", output, re.MULTILINE
    )
    assert output.endswith("One of two servers was lost, 0 of 240 episodes were.\n")


@pytest.mark.any_loop
@pytest.mark.timeout(200)  # 20 s where nothing else runs
def test_the_demo_trains_on_nothing_too_old_and_loses_nothing(run_script: RunScript) -> None:
    # Not in asyncio's debug mode: that says of each step of training how long it held the loop up.
    demo = str(EXAMPLES / "train_reversal")
    done = run_script(ON_THE_LOOP, demo, "--quick", "--no-plot", timeout=180.0, flags=("-W", "error"))

    assert (done.returncode, done.stderr) == (0, "")
    _see_promises_kept(done.stdout)


@pytest.mark.any_loop
@pytest.mark.timeout(300)  # Ray starts twice, and so do its workers
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
def test_the_demo_keeps_its_promises_when_two_other_processes_play(run_script: RunScript) -> None:
    demo = [str(EXAMPLES / "train_reversal"), "--quick", "--no-plot", "--workers", "2"]
    done = run_script(ON_THE_LOOP, *demo, timeout=280.0, flags=("-W", "error"))

    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *played by workers +2 +2 *$", done.stdout, re.MULTILINE)
    played = re.search(
        r"^ *answers that each played +(\S+) \+ (\S+) +(\S+) \+ (\S+) *$", done.stdout, re.MULTILINE
    )
    assert played
    assert all(int(count.replace(",", "")) > 0 for count in played.groups())
    assert re.search(r"^ *workers that died +0 +0 *$", done.stdout, re.MULTILINE)
    _see_promises_kept(done.stdout)


@pytest.mark.any_loop
def test_the_demo_says_what_is_missing_before_it_trains_with_workers(run_script: RunScript) -> None:
    without_ray = ON_THE_LOOP.replace(
        "import os, runpy, sys", 'import os, runpy, sys; sys.modules["ray"] = None'
    )
    done = run_script(without_ray, str(EXAMPLES / "train_reversal"), "--workers", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "error: argument --workers: Ray is not installed; pip install 'areal-core[ray]'\n"
    )


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("plot", "says"),
    [
        ("curves.txt", "curves.txt has none of the suffixes avif, eps, "),
        ("curves", "curves has none of the suffixes avif, eps, "),
        ("nowhere/curves.png", "nowhere/curves.png is a directory, or in none that exists"),
    ],
    ids=["odd suffix", "no suffix", "no directory"],
)
def test_the_demo_refuses_a_picture_it_could_not_write_before_it_trains(
    run_script: RunScript, plot: str, says: str
) -> None:
    demo = str(EXAMPLES / "train_reversal")
    done = run_script(ON_THE_LOOP, demo, "--quick", "--plot", plot, flags=("-W", "error"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: argument --plot: {says}" in done.stderr


@pytest.mark.any_loop
@pytest.mark.parametrize("where", ["here", "in a program"])
def test_an_agent_is_trained_on_what_the_server_sampled_and_on_nothing_else(
    run_script: RunScript, where: str
) -> None:
    agent = [str(EXAMPLES / "train_agent"), "--quick", *(["--program"] if where == "in a program" else [])]
    done = run_script(ON_THE_LOOP, *agent, timeout=180.0, flags=("-W", "error"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "384 episodes in " in done.stdout
    assert done.stdout.endswith("384 rows compared with the server's log, 0 of them wrong\n")


@pytest.mark.any_loop
def test_every_example_is_tested_here() -> None:
    here = Path(__file__)
    told = "".join(path.read_text() for path in here.parent.glob("test_example*.py"))
    tested = re.findall(r'"(\w+\.py)"', told)
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(tested)
    trained = re.findall(r'EXAMPLES / "(\w+)"', told)
    assert {path.parent.name for path in EXAMPLES.glob("*/__main__.py")} == set(trained)


def _see_promises_kept(output: str) -> None:
    """See in what the demo printed that nothing trained on was too old, and that all groups are somewhere."""
    assert re.search(r"^ *answers trained on +2,560 +2,560 *$", output, re.MULTILINE)
    assert re.search(r"^ *tokens trained on over the bound +0 +0 *$", output, re.MULTILINE)
    for run in ("asynchronous", "synchronous"):
        books = re.search(rf"^ *{run}((?: +[\d,]+){{6}}) *$", output, re.MULTILINE)
        assert books
        submitted, *places = (int(number.replace(",", "")) for number in books[1].split())
        assert submitted == sum(places) > 0
    assert "These are too few steps to learn the task." in output


def _table(output: str) -> dict[str, int]:
    """Return the number of rollouts per outcome."""
    row = re.compile(r"^(completed|failed|timed_out|cancelled|all) +([\d,]+)(?:  .*)?\r?$", re.MULTILINE)
    return {outcome: int(number.replace(",", "")) for outcome, number in row.findall(output)}
