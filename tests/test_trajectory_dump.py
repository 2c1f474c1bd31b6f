"""Trajectories written to files, beside the event loop."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_core._trajectory import dump as module
from areal_core.trajectory import TrajectoryDump
from children import RunScript
from doors import in_thread
from interrupts import each_step, interrupt
from logged import LogLines
from trajectories import a_trajectory, as_tensor, both_kinds, converted

LONG_S = 20.0
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


class Gate:
    """Stands before each write to a file: while it is closed, none gets through."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened.set()
        self.reached = threading.Event()
        self.threads: set[threading.Thread] = set()

    def close(self) -> None:
        """Let nothing through, and forget who came."""
        self.opened.clear()
        self.reached.clear()

    def before(self, append: Callable[[Path, bytes], None]) -> Callable[[Path, bytes], None]:
        def wait_and_append(path: Path, line: bytes) -> None:
            self.threads.add(threading.current_thread())
            self.reached.set()
            assert self.opened.wait(LONG_S)
            append(path, line)

        return wait_and_append


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(module, "_append", gate.before(module._append))
    yield gate
    gate.opened.set()


@pytest.fixture
def dump(tmp_path: Path) -> Iterator[TrajectoryDump]:
    with TrajectoryDump(tmp_path / "dump") as made:
        yield made


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(path: Path) -> list[int]:
    return [record["task_id"] for record in lines(path)]


@both_kinds
def test_a_record_is_a_line_in_the_file_of_its_version(
    dump: TrajectoryDump, tmp_path: Path, convert: Callable[[Any], Any]
) -> None:
    trajectory = converted(a_trajectory(2, 3, images=["a", b"b"]), convert)
    dump.write(4, {"task_id": 7, "data_id": "q", "status": "accepted", "origin": 3, "trajectory": trajectory})
    dump.write(5, {"task_id": 8})
    assert dump.flush(LONG_S)
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == ["4.jsonl", "5.jsonl"]
    assert lines(tmp_path / "dump" / "4.jsonl") == [
        {
            "task_id": 7,
            "data_id": "q",
            "status": "accepted",
            "origin": 3,
            "trajectory": {
                "input_ids": [[10, 11, 12], [13, 14, 15]],
                "attention_mask": [[1, 1, 1]] * 2,
                "loss_mask": [[1, 1, 1]] * 2,
                "logprobs": [[-0.5] * 3] * 2,
                "versions": [[3, 3, 3]] * 2,
                "rewards": [1.0, 1.0],
                "images": ["a", "Yg=="],
            },
        }
    ]
    assert (dump.written, dump.dropped, dump.failed) == (2, 0, 0)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.array(2.5), 2.5),
        (np.array([[True, False]]), [[True, False]]),
        (np.zeros((1, 2, 2), int), [[[0, 0], [0, 0]]]),
        (np.zeros((0, 3)), []),
        (np.array([1.0, float("nan")]), [1.0, None]),
        (np.array([["a", None, object()]], dtype=object), [["a", None, "<object>"]]),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        ([np.array([1, 2]), {"deep": np.array([[3]])}], [[1, 2], {"deep": [[3]]}]),
        (object(), "<object>"),
        ({"status": Path}, {"status": "<type>"}),
        ({("a", "b"): 2**70}, {"<tuple>": 2**70}),
    ],
)
def test_json_has_a_word_for_each_value(
    dump: TrajectoryDump, tmp_path: Path, value: Any, written: Any
) -> None:
    dump.write(0, {"value": value})
    assert dump.flush(LONG_S)
    assert lines(tmp_path / "dump" / "0.jsonl") == [{"value": written}]


def test_tensors_of_odd_dtypes_and_with_gradients_are_written(dump: TrajectoryDump, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    dump.write(0, {"a": torch.ones(1, 2, dtype=torch.bfloat16), "b": torch.ones(2, requires_grad=True)})
    assert dump.flush(LONG_S)
    assert lines(tmp_path / "dump" / "0.jsonl") == [{"a": [[1.0, 1.0]], "b": [1.0, 1.0]}]


@pytest.mark.parametrize("convert", [lambda value: value, as_tensor], ids=["numpy", "torch"])
def test_arrays_may_be_changed_at_once(
    dump: TrajectoryDump, tmp_path: Path, gate: Gate, convert: Callable[[Any], Any]
) -> None:
    gate.close()
    dump.write(0, {"task_id": 0})  # the next is still to be encoded when the gate opens
    trajectory = converted(a_trajectory(1, 2), convert)
    rewards = convert(np.array([0.25]))
    dump.write(0, {"task_id": 1, "rewards": rewards, "trajectory": trajectory})
    rewards[0] = 9.0
    trajectory["versions"][:] = 9
    del trajectory["input_ids"]
    gate.opened.set()
    assert dump.flush(LONG_S)
    record = lines(tmp_path / "dump" / "0.jsonl")[1]
    assert record["rewards"] == [0.25]
    assert record["trajectory"]["versions"] == [[3, 3]]
    assert record["trajectory"]["input_ids"] == [[10, 11]]


def test_nothing_is_there_before_the_first_write_and_then_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "7"
    with TrajectoryDump(str(directory)) as dump:
        assert list(tmp_path.iterdir()) == []
        dump.write(0, {"task_id": 0})
        assert dump.flush(LONG_S)
        assert stat.S_IMODE((directory / "0.jsonl").stat().st_mode) == 0o600
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "before", [b"", b'{"task_id":1}\n', b'{"task_id":1}', b'{"task_id":1}\n{"task_id":2,"tra']
)
def test_a_line_that_was_cut_short_takes_none_with_it(tmp_path: Path, before: bytes) -> None:
    (tmp_path / "3.jsonl").write_bytes(before)
    with TrajectoryDump(tmp_path) as dump:
        dump.write(3, {"task_id": 5})
        dump.write(3, {"task_id": 6})
    behind = b"\n" if before and not before.endswith(b"\n") else b""
    assert (tmp_path / "3.jsonl").read_bytes() == before + behind + b'{"task_id":5}\n{"task_id":6}\n'


def test_the_loop_goes_on_while_a_write_hangs(
    dump: TrajectoryDump, gate: Gate, tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    gate.close()

    async def write_all() -> None:
        for number in range(50):
            dump.write(number % 2, {"task_id": number})
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(write_all())
    assert not dump.flush(0.0)
    assert dump.written == 0
    gate.opened.set()
    assert dump.flush(LONG_S)
    assert numbers(tmp_path / "dump" / "0.jsonl") == list(range(0, 50, 2))
    assert numbers(tmp_path / "dump" / "1.jsonl") == list(range(1, 50, 2))
    (writer,) = gate.threads
    assert writer is not threading.current_thread()
    assert not writer.daemon


def test_what_is_too_much_to_wait_is_dropped_counted_and_now_and_then_logged(
    tmp_path: Path, gate: Gate, log_lines: LogLines
) -> None:
    gate.close()
    array = np.zeros(10_000, np.int8)
    with TrajectoryDump(tmp_path, max_waiting_bytes=40_000) as dump:
        for number in range(20):
            dump.write(0, {"task_id": number, "deep": {"array": array}})
        assert dump.dropped == 17
        gate.opened.set()
        assert dump.flush(LONG_S)
        gate.close()
        for number in range(20, 24):
            dump.write(0, {"task_id": number, "array": array})
        gate.opened.set()
    assert numbers(tmp_path / "0.jsonl") == [0, 1, 2, 20, 21, 22]
    assert (dump.written, dump.dropped) == (6, 18)
    counts = [line.rpartition("dropped=")[2] for line in log_lines.of("warning")]
    assert counts == ["1", "2", "4", "8", "16"]
    assert "why=more than max_waiting_bytes=40000 would be waiting" in log_lines.of("warning")[0]


def test_one_that_is_larger_than_all_may_be_waits_alone(tmp_path: Path, gate: Gate) -> None:
    gate.close()
    with TrajectoryDump(tmp_path, max_waiting_bytes=1) as dump:
        dump.write(0, {"task_id": 0, "array": np.zeros(10_000)})
        dump.write(0, {"task_id": 1})
        gate.opened.set()
    assert numbers(tmp_path / "0.jsonl") == [0]
    assert (dump.written, dump.dropped) == (1, 1)


def test_a_full_disk_is_counted_and_logged_and_over_some_day(tmp_path: Path, log_lines: LogLines) -> None:
    (tmp_path / "1.jsonl").symlink_to("/dev/full")
    with TrajectoryDump(tmp_path) as dump:
        for number in range(5):
            dump.write(1, {"task_id": number})
        assert dump.flush(LONG_S)
        assert (dump.written, dump.failed) == (0, 5)
        (tmp_path / "1.jsonl").unlink()
        dump.write(1, {"task_id": 5})
    assert numbers(tmp_path / "1.jsonl") == [5]
    errors = log_lines.of("error")
    assert [line.rpartition("failed=")[2] for line in errors] == ["1", "2", "4"]
    assert "No space left on device" in errors[0]
    assert str(tmp_path / "1.jsonl") in errors[0]


def test_a_file_where_the_directory_should_be_is_only_logged(tmp_path: Path, log_lines: LogLines) -> None:
    (tmp_path / "file").touch()
    with TrajectoryDump(tmp_path / "file") as dump:
        dump.write(1, {"task_id": 0})
    assert dump.failed == 1
    assert "trajectory_not_dumped" in log_lines.of("error")[0]


@pytest.mark.parametrize(
    ("version", "record"),
    [
        (0, {"text": "a secret \ud800"}),
        (0, {"tree": ENDLESS}),
        ("../0", {"task_id": 0}),
        (None, {"task_id": 0}),
        (0, None),
    ],
    ids=["half a character", "what contains itself", "a path", "no version", "no record"],
)
def test_what_cannot_be_written_is_lost_alone(
    dump: TrajectoryDump, tmp_path: Path, log_lines: LogLines, version: Any, record: Any
) -> None:
    dump.write(version, record)
    dump.write(0, {"task_id": 1})
    assert dump.flush(LONG_S)
    assert numbers(tmp_path / "dump" / "0.jsonl") == [1]
    assert (dump.written, dump.failed, dump.dropped) == (1, 1, 0)
    assert len(log_lines.of("error")) == 1
    assert "secret" not in log_lines.of("error")[0]


def test_close_writes_what_waits_and_takes_no_more(tmp_path: Path, log_lines: LogLines) -> None:
    dump = TrajectoryDump(tmp_path)
    for number in range(100):
        dump.write(0, {"task_id": number})
    dump.close()
    dump.close()
    dump.write(0, {"task_id": 100})
    assert numbers(tmp_path / "0.jsonl") == list(range(100))
    assert (dump.written, dump.dropped) == (100, 1)
    assert [line for line in log_lines.of("warning") if "why=closed" in line]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("areal-dump")]


def test_close_gives_up_what_hangs_for_longer_than_its_timeout(
    tmp_path: Path, gate: Gate, log_lines: LogLines
) -> None:
    gate.close()
    dump = TrajectoryDump(tmp_path)
    for number in range(4):
        dump.write(0, {"task_id": number})
    assert gate.reached.wait(LONG_S)
    dump.close(timeout=0.01)
    assert dump.dropped == 3
    assert "why=close gave them 0.01 s dropped=3" in log_lines.of("warning")[0]
    gate.opened.set()
    dump.close()  # waits for the one that hung
    assert numbers(tmp_path / "0.jsonl") == [0]
    assert not [thread for thread in gate.threads if thread.is_alive()]


def test_of_many_threads_records_none_is_lost(dump: TrajectoryDump, tmp_path: Path) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 50):
            dump.write(0, {"task_id": number})

    threads = [threading.Thread(target=write, args=(50 * place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dump.flush(LONG_S)
    found = numbers(tmp_path / "dump" / "0.jsonl")
    assert sorted(found) == list(range(200))
    for place in range(4):
        of_one = [number for number in found if number // 50 == place]
        assert of_one == sorted(of_one)


@pytest.mark.any_loop
def test_what_waits_when_the_interpreter_exits_is_written(run_script: RunScript, tmp_path: Path) -> None:
    script = run_script(
        """
        import atexit, sys
        import numpy as np
        from areal_core.trajectory import TrajectoryDump

        def write_too_late():
            dump.write(0, {"task_id": 20})
            print(dump.written, dump.dropped, dump.failed)

        dump = TrajectoryDump(sys.argv[1])
        atexit.register(write_too_late)
        for number in range(20):
            dump.write(0, {"task_id": number, "array": np.zeros((8, 4096))})
        """,
        str(tmp_path / "dump"),
    )
    assert (script.returncode, script.stdout) == (0, "20 1 0\n")
    assert (
        script.stderr
        == "trajectory_dump_dropped why=the interpreter is exiting; nothing new can start dropped=1\n"
    )
    assert numbers(tmp_path / "dump" / "0.jsonl") == list(range(20))


def call(dump: TrajectoryDump, method: str) -> None:
    if method == "write":
        dump.write(0, {"task_id": 0})
    elif method == "refuse":
        dump.write(0, {"task_id": 0, "array": np.zeros(10_000)})
    else:
        getattr(dump, method)()


@pytest.mark.any_loop
@pytest.mark.parametrize("method", ["write", "flush", "close", "refuse"])
def test_a_ctrl_c_at_any_step_leaves_each_record_whole_or_out_and_no_lock_held(
    tmp_path: Path, gate: Gate, method: str
) -> None:
    for step in each_step():
        dump = TrajectoryDump(tmp_path / str(step), max_waiting_bytes=10_000)
        if method == "refuse":
            gate.close()
        if method != "write":
            call(dump, "write")
        outcome = interrupt(partial(call, dump, method), step)
        gate.opened.set()
        assert in_thread(dump.flush, LONG_S)
        in_thread(dump.write, 0, {"task_id": 1})
        assert in_thread(dump.flush, LONG_S)
        in_thread(dump.close)
        path = tmp_path / str(step) / "0.jsonl"
        found = numbers(path) if path.exists() else []
        assert found in {"write": ([0, 1], [1]), "close": ([0, 1], [0])}.get(method, ([0, 1],)), outcome.where
        if not outcome.tripped:
            break
    assert step > 10, "this was to interrupt something"


@pytest.mark.any_loop
def test_a_forked_child_writes_nothing_and_waits_for_nothing(tmp_path: Path, gate: Gate) -> None:
    gate.close()
    with TrajectoryDump(tmp_path) as dump:
        dump.write(0, {"task_id": 0})
        assert gate.reached.wait(LONG_S)

        def go_on() -> None:
            dump.write(0, {"task_id": 1})
            assert dump.flush()
            dump.close()

        child = multiprocessing.get_context("fork").Process(target=go_on)
        child.start()
        child.join(LONG_S)
        assert child.exitcode == 0
        gate.opened.set()
    assert numbers(tmp_path / "0.jsonl") == [0]


@pytest.mark.parametrize("limit", [0, -1, 1.5, None])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, limit: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_waiting_bytes="):
        TrajectoryDump(tmp_path, max_waiting_bytes=limit)
