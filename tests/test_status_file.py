"""The status file: who can read it, when it is whole, and what it says of runs that are over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from areal_core._observe import runs
from areal_core._observe.rates import Rates
from areal_core._observe.runs import State, find_runs, process_start, read_run, state_of
from areal_core._observe.status_file import StatusFile
from areal_core.config import InferenceEngineConfig
from children import RunScript, StartScript
from conftest import MakeExecutor
from executor_tools import WAIT_S, Playing, answering
from interrupts import interrupt
from logged import LogLines
from snapshots import SNAPSHOT, changed, status_of, write_status

_DAY_S = 86400.0


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have all places where runs put their files be in the test's own directory; return the first."""
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "XDG_RUNTIME_DIR" / "areal_core"


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread or process does to the disk, which tells nobody."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.005)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


# -- what a run writes -----------------------------------------------------------------------------


def test_it_is_there_at_once_for_its_owner_alone_and_says_at_last_that_it_has_ended(
    make_executor: MakeExecutor, runtime_directory: Path
) -> None:
    executor = make_executor(status_file=True)
    until(lambda: len(find_runs()) == 1)
    (run,) = find_runs()
    assert run.path.parent == runtime_directory
    assert run.path.name.endswith(".json")
    assert f"-{os.getpid()}-" in run.path.name
    assert (mode_of(run.path), mode_of(runtime_directory)) == (0o600, 0o700)
    assert run.state is State.LIVE
    executor.submit(1, answering)
    executor.wait(1, WAIT_S)
    executor.destroy()
    (ended,) = find_runs()
    assert ended.path == run.path
    assert ended.state is State.ENDED
    assert ended.status.snapshot.training.collected == 1
    assert list(runtime_directory.iterdir()) == [run.path]


def test_a_path_is_taken_as_it_is_and_its_directory_is_made(
    make_executor: MakeExecutor, tmp_path: Path, runtime_directory: Path
) -> None:
    path = tmp_path / "new" / "status"
    make_executor(status_file=path).destroy()
    assert read_run(path).state is State.ENDED
    assert mode_of(path) == 0o600
    assert not runtime_directory.exists()


@pytest.mark.any_loop
def test_the_next_life_of_an_executor_goes_on_in_the_same_file(make_executor: MakeExecutor) -> None:
    executor = make_executor(status_file=True)
    executor.destroy()
    executor.initialize()
    until(lambda: [run.state for run in find_runs()] == [State.LIVE])
    make_executor(status_file=True)
    until(lambda: len(find_runs()) == 2)


@pytest.mark.any_loop
def test_whoever_reads_has_all_of_one_state_and_never_half_of_two(tmp_path: Path) -> None:
    path, over, seen = tmp_path / "status", threading.Event(), set()
    file = StatusFile(path, 1)

    def write_all() -> None:
        for number in range(400):
            stages = {f"stage {one}": number for one in range(number * 4)}
            file.write(changed(version=number, stages=stages), Rates())
        over.set()

    file.write(changed(version=0, stages={}), Rates())
    writer = threading.Thread(target=write_all)
    writer.start()
    while not over.is_set():
        found = read_run(path).status.snapshot
        assert found.stages == {f"stage {one}": found.version for one in range(found.version * 4)}
        seen.add(found.version)
    writer.join()
    assert len(seen) > 3
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.any_loop
def test_what_a_killed_write_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "status"
    left = runs.unfinished(path, 1)
    left.symlink_to(tmp_path / "precious")
    StatusFile(path, 1).write(SNAPSHOT, Rates())
    assert read_run(path).status.snapshot == SNAPSHOT
    assert not (tmp_path / "precious").exists()


@pytest.mark.any_loop
def test_a_disk_that_refuses_is_told_of_once_and_costs_no_rollout(
    make_executor: MakeExecutor, tmp_path: Path, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._observe.showing.EVERY_S", 0.01)
    (tmp_path / "file").write_text("in the way")
    executor = make_executor(status_file=tmp_path / "file" / "status", consumer_batch_size=9)
    for number in range(5):
        executor.submit(number, answering)
        executor.wait(1, WAIT_S)
    executor.destroy()
    told = [str(line) for line in log_lines if "not_shown" in str(line)]
    assert len(told) == 1
    assert "what=status_file" in told[0]
    assert "NotADirectoryError" in told[0] or "FileExistsError" in told[0]


HALF = "half \ud83d of a pair"


@pytest.mark.any_loop
def test_texts_that_no_utf_8_can_have_do_not_keep_it_from_being_written(
    make_executor: MakeExecutor, tmp_path: Path, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._observe.showing.EVERY_S", 0.01)
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{HALF}"])
    path = tmp_path / "status"

    def stragglers() -> list[Any]:
        return [one.data_id for one in read_run(path).status.snapshot.stragglers]

    executor = make_executor(status_file=path)
    executor.submit({"data_id": HALF}, Playing(_for_ever))
    until(lambda: path.exists() and stragglers() == ["half ? of a pair"])
    assert read_run(path).status.snapshot.program == "half ? of a pair"
    assert not [line for line in log_lines if "not_shown" in line.message]


async def _for_ever(_data: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.any_loop
def test_a_relative_path_stays_where_it_was_when_the_program_goes_elsewhere(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    executor = make_executor(status_file="status")
    until((tmp_path / "status").exists)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    executor.destroy()
    assert read_run(tmp_path / "status").state is State.ENDED
    assert not list(Path().iterdir())


def test_an_executor_begins_without_a_working_directory(run_script: RunScript, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.mkdir()
    begin = "import os; os.chdir(sys.argv[2]); os.rmdir(sys.argv[2]); executor.initialize(); print('it runs')"
    done = run_script(RUN + begin, "status", str(lost))
    assert done.stdout == "it runs\n"
    assert "not_shown what=status_file path=status" in done.stderr


def test_a_program_that_destroys_nothing_says_at_its_end_that_it_has_ended(
    run_script: RunScript, tmp_path: Path
) -> None:
    path = tmp_path / "status"
    done = run_script(RUN + "executor.initialize()", str(path))
    assert (done.stderr, done.returncode) == ("", 0)
    assert read_run(path).state is State.ENDED


@pytest.mark.any_loop
def test_a_ctrl_c_while_it_begins_or_ends_leaves_no_thread_and_an_executor_that_works(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    executor = make_executor(status_file=tmp_path / "status", consumer_batch_size=99)
    for step in range(0, 400, 11):
        interrupt(executor.destroy, step)
        executor.destroy()
        interrupt(executor.initialize, step)
        executor.destroy()
        executor.initialize()
        executor.submit(step, answering)
        assert len(executor.wait(1, WAIT_S)) == 1
    executor.destroy()
    assert read_run(tmp_path / "status").state is State.ENDED


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ("", ValueError, "status_file='' names no file; give a path, or True"),
        (7, TypeError, "status_file=7 is no path; give one, or True or False"),
        (None, TypeError, "status_file=None is no path; give one, or True or False"),
    ],
)
def test_what_is_no_path_is_refused(value: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as refused:
        InferenceEngineConfig(status_file=value)
    assert str(refused.value) == says


# -- where -----------------------------------------------------------------------------------------


def open_to_all(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def a_link(directory: Path) -> None:
    (directory.parent / "elsewhere").mkdir()
    directory.symlink_to(directory.parent / "elsewhere")


def a_file(directory: Path) -> None:
    directory.write_text("")


@pytest.mark.any_loop
@pytest.mark.parametrize("spoil", [open_to_all, a_link, a_file], ids=lambda spoil: spoil.__name__)
def test_a_directory_that_others_could_write_to_is_passed_over(
    runtime_directory: Path, spoil: Callable[[Path], None]
) -> None:
    assert runs.own_directory() == runtime_directory
    runtime_directory.rmdir()
    spoil(runtime_directory)
    first, second, third = runs.runtime_directories()
    assert first == runtime_directory
    assert runs.own_directory() == second
    second.rmdir()
    a_file(second)
    assert runs.own_directory() == third
    assert third.name == f"areal_core-{os.getuid()}"
    assert mode_of(third) == 0o700
    third.rmdir()
    a_file(third)
    with pytest.raises(OSError, match=r"^no directory for status files: .*; give status_file a path$"):
        runs.own_directory()


@pytest.mark.any_loop
def test_what_others_could_have_put_there_is_not_read(runtime_directory: Path) -> None:
    write_status(runtime_directory / "train-1-1.json", status_of(SNAPSHOT))
    assert len(find_runs()) == 1
    runtime_directory.chmod(0o777)
    assert find_runs() == []


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("train.py", "train.py-7-2.json"),
        ("../../evil name", "evil_name-7-2.json"),
        ("-c", "c-7-2.json"),
        ("", "python-7-2.json"),
        ("日本", "python-7-2.json"),
        ("x" * 300, f"{'x' * 40}-7-2.json"),
    ],
)
def test_a_file_is_named_by_its_program_whatever_that_is_called(program: str, name: str) -> None:
    assert runs.file_name(program, 7, 2) == name


# -- live or dead ----------------------------------------------------------------------------------


@pytest.mark.any_loop
def test_a_run_is_told_from_another_that_has_its_process_id_now() -> None:
    mine = status_of(changed(pid=os.getpid()))
    assert state_of(mine) is State.LIVE
    assert state_of(msgspec.structs.replace(mine, process_start="some-boot:1")) is State.DIED
    late = status_of(changed(pid=os.getpid(), taken_at=time.time() - 60))
    assert state_of(late) is State.SILENT
    assert state_of(status_of(changed(has_ended=True))) is State.ENDED


@pytest.mark.any_loop
@pytest.mark.parametrize(("age_s", "state"), [(1, State.LIVE), (30, State.SILENT), (90, State.DIED)])
def test_of_another_host_only_the_time_tells(age_s: float, state: State) -> None:
    status = status_of(changed(pid=os.getpid(), taken_at=time.time() - age_s), host="elsewhere")
    assert state_of(status) is state
    assert state_of(msgspec.structs.replace(status, host=runs.this_host(), process_start=None)) is state


@pytest.mark.any_loop
def test_a_process_that_nobody_has_waited_for_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_start(child.pid) is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_start(child.pid) is None


RUN = """
import sys
from areal_core import InferenceEngineConfig, WorkflowExecutor

class Engine:
    def get_version(self):
        return 5

executor = WorkflowExecutor(InferenceEngineConfig(status_file=sys.argv[1]), Engine())
"""


def test_the_last_word_of_a_run_that_was_killed_stays_and_it_is_known_to_be_dead(
    start_script: StartScript, tmp_path: Path
) -> None:
    path = tmp_path / "status"
    child = start_script(RUN + "executor.initialize(); print(flush=True); sys.stdin.read()", str(path))
    assert child.stdout is not None
    child.stdout.readline()
    until(path.exists)
    assert read_run(path).state is State.LIVE
    child.send_signal(signal.SIGSTOP)
    assert read_run(path).is_live
    child.kill()
    child.wait()
    found = read_run(path)
    assert found.state is State.DIED
    assert not found.is_live
    assert (found.status.snapshot.version, found.status.snapshot.pid) == (5, child.pid)


def test_a_process_whose_name_is_cut_within_a_character_is_there(
    start_script: StartScript, tmp_path: Path
) -> None:
    path = tmp_path / "status"
    rename = """
import ctypes
name = "тренировка".encode()[:15]  # which is where the kernel cuts
assert ctypes.CDLL(None).prctl(15, ctypes.c_char_p(name), 0, 0, 0) == 0
executor.initialize(); print(flush=True); sys.stdin.read()
"""
    child = start_script(RUN + rename, str(path))
    assert child.stdout is not None
    assert child.stdout.readline() == "\n"
    until(path.exists)
    found = read_run(path)
    assert (found.state, found.status.process_start) == (State.LIVE, process_start(child.pid))
    assert found.status.process_start is not None
    child.kill()
    child.wait()
    assert read_run(path).state is State.DIED


@pytest.mark.any_loop
@pytest.mark.parametrize("how", ["one path", "a link"])
def test_a_run_in_a_directory_that_has_two_names_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    same = tmp_path / "XDG_RUNTIME_DIR"
    if how == "a link":
        (tmp_path / "link").symlink_to(same)
        same = tmp_path / "link"
    monkeypatch.setenv("XDG_CACHE_HOME", str(same))
    write_status(runs.own_directory() / "run-1-1.json", status_of(SNAPSHOT))
    assert [run.path.name for run in find_runs()] == ["run-1-1.json"]


@pytest.mark.any_loop
def test_a_week_after_its_death_a_run_is_forgotten(runtime_directory: Path) -> None:
    dead, live = status_of(SNAPSHOT, process_start="some-boot:1"), status_of(SNAPSHOT)
    old = {
        "dead-1-1.json": dead,
        "live-2-1.json": live,
        ".dead-1-1.json.1-1.new": dead,
        "ended-4-1.json": status_of(changed(has_ended=True)),
        "notes.json": dead,
    }
    for name, status in old.items():
        path = write_status(runtime_directory / name, status)
        os.utime(path, (time.time() - 8 * _DAY_S,) * 2)
    (runtime_directory / "garbage-5-1.json").write_text("{")
    write_status(runtime_directory / "fresh-3-1.json", dead)
    runs.remove_old(runtime_directory)
    left = {"live-2-1.json", "fresh-3-1.json", "notes.json", "garbage-5-1.json"}
    assert {path.name for path in runtime_directory.iterdir()} == left


@pytest.mark.any_loop
def test_the_newest_run_is_the_first_and_what_is_none_is_passed_over(runtime_directory: Path) -> None:
    for number, uptime_s in ((1, 50.0), (2, 10.0), (3, 30.0)):
        write_status(runtime_directory / f"run-{number}-1.json", status_of(changed(uptime_s=uptime_s)))
    (runtime_directory / "half-4-1.json").write_bytes(b'{"schema": 1, "host"')
    later = {**msgspec.to_builtins(status_of(SNAPSHOT)), "schema": runs.SCHEMA + 1}
    (runtime_directory / "later-5-1.json").write_bytes(msgspec.json.encode(later))
    assert [run.path.name for run in find_runs()] == ["run-2-1.json", "run-3-1.json", "run-1-1.json"]
    with pytest.raises(ValueError, match=rf"^schema {runs.SCHEMA + 1} is later than {runs.SCHEMA}; "):
        read_run(runtime_directory / "later-5-1.json")
