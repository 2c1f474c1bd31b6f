"""The file of a journal: what a restart finds in it, whole, damaged, and in use."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import random
import shutil
import sqlite3
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from areal_core._journal import lock
from areal_core._journal.keys import Keys, epoch_of
from areal_core._journal.records import (
    ACCEPTED,
    Committed,
    Delivered,
    Ended,
    Queued,
    Record,
    Recovered,
    Reopened,
    Returned,
)
from areal_core._journal.store import Store
from areal_core.errors import JournalError
from children import RunScript, StartScript
from journal_plans import Model, plan, state_of


def write(directory: Path, *records: Record, resume_from: int | None = None) -> None:
    with Store(directory) as store:
        store.read(resume_from)
        store.append(records)


def read(directory: Path, step: int | None) -> Recovered:
    with Store(directory) as store:
        return store.read(step)


def accepted(key: str, result: bytes = b"r") -> list[Record]:
    return [Queued(key, max(0, epoch_of(key)), b"d"), Ended(key, "accepted", result)]


def test_an_empty_journal_begins_anew_and_has_no_steps(store: Store) -> None:
    found = store.read()
    assert (found.step, len(found.done), found.finished, found.pending, found.damaged) == (None, 0, (), (), 0)
    assert store.steps() == []


@pytest.mark.parametrize("seed", range(12))
def test_what_is_found_is_what_happened_over_many_runs(directory: Path, seed: int) -> None:
    """Each run appends in batches, compacts now and then, and ends; the next resumes one of two steps."""
    model, chance = Model(), random.Random(seed)
    write(directory, Committed(0))
    model.tell(Committed(0))
    for run in range(5):
        step = chance.choice(model.steps())
        with Store(directory) as store:
            assert store.steps() == model.steps()
            found = store.read(step)
            model.resume(step)
            assert state_of(found) == model.state(step)
            assert (found.damaged, found.step) == (0, step)
            records = plan(model, 100 * seed + run, chance.randrange(120))
            while records:
                batch, records = records[:7], records[7:]
                store.append(batch)
                if chance.random() < 0.4:
                    store.compact()


def test_what_a_run_did_that_is_not_resumed_counts_for_nothing(directory: Path) -> None:
    write(directory, *accepted("0:a"), *accepted("0:b"), Delivered(("0:a",)), Committed(1))
    write(directory, Delivered(("0:b",)), resume_from=1)
    # This run's trainer never has b, and yet commits: b must not be taken for trained.
    write(directory, *accepted("0:c"), Delivered(("0:c",)), Committed(2), resume_from=1)
    found = read(directory, 2)
    assert sorted(found.done) == ["0:a", "0:c"]
    assert [(one.key, one.delivered) for one in found.finished] == [("0:b", True)]


def test_a_store_that_is_read_again_gives_up_its_own_deliveries(store: Store) -> None:
    store.append([*accepted("0:a"), Committed(1), Delivered(("0:a",))])
    assert [one.delivered for one in store.read(1).finished] == [True]
    store.append([Committed(2)])
    assert [one.key for one in store.read(2).finished] == ["0:a"]


def test_reading_alone_gives_nothing_up(directory: Path) -> None:
    write(directory, Committed(1), Committed(2))
    read(directory, 1)
    assert read(directory, 2).step == 2
    write(directory, resume_from=1)
    with Store(directory) as store:
        assert store.steps() == [1]


def test_before_the_first_commit_a_run_goes_on_from_the_beginning(directory: Path) -> None:
    write(directory, Queued("0:a", 0), Ended("0:a", ACCEPTED, b"a"), Queued("0:b", 0), Delivered(("0:a",)))
    with pytest.raises(JournalError, match="no step was committed: give resume_from=None"):
        read(directory, 0)
    found = read(directory, None)
    assert (found.step, [one.key for one in found.finished], [one.key for one in found.pending]) == (
        None,
        ["0:a"],
        ["0:b"],
    )


def test_what_was_given_back_before_a_commit_is_not_in_it(directory: Path) -> None:
    some = [*accepted("0:0"), *accepted("0:1"), Delivered(("0:0", "0:1")), Returned(("0:1",)), Committed(0)]
    write(directory, *some)
    found = read(directory, 0)
    assert list(found.done) == ["0:0"]
    assert [one.key for one in found.finished] == ["0:1"]


def test_nothing_is_appended_before_it_is_said_where_the_journal_goes_on(directory: Path) -> None:
    with Store(directory) as store, pytest.raises(ValueError, match="append before read"):
        store.append([Committed(1)])


@pytest.mark.parametrize("step", [None, 3, 7])
def test_a_step_that_cannot_be_resumed_is_refused_with_those_that_can(
    directory: Path, step: int | None
) -> None:
    write(directory, Committed(3), Committed(4), Committed(6))
    with pytest.raises(JournalError, match=r"give resume_from one of \[4, 6\]"):
        read(directory, step)


FAILED = ["failed", "timed_out"]


@pytest.mark.parametrize("status", FAILED)
def test_what_failed_is_done_with_the_next_commit(directory: Path, status: str) -> None:
    write(directory, Committed(1), Queued("0:a", 0, b"d"), Ended("0:a", status), Committed(2))
    assert list(read(directory, 2).done) == ["0:a"]
    found = read(directory, 1)
    assert (list(found.done), [one.key for one in found.pending]) == ([], ["0:a"])


@pytest.mark.parametrize("status", ["rejected", "stale", "cancelled"])
def test_what_ended_otherwise_is_done_at_once(directory: Path, status: str) -> None:
    write(directory, Committed(1), Queued("0:a", 0, b"d"), Ended("0:a", status))
    assert list(read(directory, 1).done) == ["0:a"]


@pytest.mark.parametrize("compacts", [False, True], ids=["as-written", "compacted"])
@pytest.mark.parametrize("status", FAILED)
def test_what_failed_in_a_life_that_is_given_up_is_not_in_a_commit_of_the_next(
    directory: Path, status: str, compacts: bool
) -> None:
    write(directory, Committed(1), Queued("0:a", 0, b"d"), Ended("0:a", status))
    with Store(directory) as store:
        assert [one.key for one in store.read(1).pending] == ["0:a"]
        store.append([Committed(2)])  # it runs again meanwhile
        if compacts:
            store.compact()
    assert [one.key for one in read(directory, 2).pending] == ["0:a"]
    write(directory, *accepted("0:a"), Delivered(("0:a",)), Committed(3), resume_from=2)
    assert list(read(directory, 3).done) == ["0:a"]


@pytest.mark.parametrize("status", FAILED)
def test_what_failed_stays_done_when_it_is_compacted(directory: Path, status: str) -> None:
    with Store(directory) as store:
        store.read()
        store.append([Committed(0), Queued("0:a", 0, b"d"), Ended("0:a", status)])
        for step in range(1, 5):
            store.compact()
            store.append([Committed(step)])
        store.compact()
    assert [list(read(directory, step).done) for step in (3, 4)] == [["0:a"]] * 2
    with sqlite3.connect(directory / "journal.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM log").fetchone() == (2,)
    connection.close()


def test_what_failed_and_whose_item_is_damaged_is_still_the_dataloaders_to_give(directory: Path) -> None:
    write(directory, Committed(0), Queued("3:a", 3, b"d"), Ended("3:a", "failed"))
    damage_row(directory, "UPDATE log SET head = x'0011' WHERE row = 2")
    for _ in range(2):
        with Store(directory) as store:
            assert [(one.key, one.data) for one in store.read(0).pending] == [("3:a", None)]
            store.append([])
            store.compact()


def test_compaction_before_the_first_commit_keeps_the_beginning_resumable(directory: Path) -> None:
    with Store(directory) as store:
        store.read()
        store.append([*accepted("0:a"), Queued("0:b", 0), Ended("0:b", "rejected"), Delivered(("0:a",))])
        store.compact()
    found = read(directory, None)
    assert (list(found.done), [one.key for one in found.finished]) == (["0:b"], ["0:a"])


def test_lives_that_come_to_no_commit_leave_as_much_each(directory: Path) -> None:
    write(directory, *accepted("0:a"), *accepted("0:b"), Queued("0:c", 0, b"d"), Committed(0))
    rows: list[int] = []
    for _ in range(5):
        with Store(directory) as store:
            assert [one.key for one in store.read(0).finished] == ["0:a", "0:b"]
            store.append([Delivered(("0:a",)), Delivered(("0:b",)), Returned(("0:b",)), Delivered(("0:b",))])
            store.append([Queued("0:c", 0, b"d"), *accepted("0:c"), Reopened("0:c"), Ended("0:c", "failed")])
            rows.append(store.compact())
    assert rows == [8] * 5, "three items, two results and deliveries, and the commit"


def test_the_last_end_counts(directory: Path) -> None:
    write(directory, Queued("0:a", 0), Ended("0:a", "failed"), Ended("0:a", ACCEPTED, b"r"), Committed(0))
    assert [one.key for one in read(directory, 0).finished] == ["0:a"]


@pytest.mark.parametrize("harm", ["deleted", "replaced", "removed with its directory"])
def test_a_file_that_is_taken_away_is_noticed_by_the_next_commit(
    directory: Path, tmp_path: Path, harm: str
) -> None:
    path, aside = directory / "journal.sqlite", tmp_path / "aside"
    store = Store(directory)
    store.open()
    store.read()
    store.append([Committed(3)])
    if harm == "removed with its directory":
        directory.rename(aside)
    else:
        path.rename(aside)
    if harm == "replaced":
        shutil.copy(aside, path)
    store.append([Queued("0:a", 0)])
    for _ in range(2):
        with pytest.raises(JournalError, match=f"{path} was deleted or replaced while it was in use; make "
                           "another executor with resume_from=3"):  # fmt: skip
            store.append([Queued("0:b", 0), Committed(4)])
    if harm == "removed with its directory":
        aside.rename(directory)
    else:
        aside.replace(path)
    store.append([Committed(4)])
    assert [one.key for one in store.read(4).pending] == ["0:a"]
    store.close()


@pytest.mark.parametrize("step", [4, 5])
def test_a_step_is_committed_once_and_in_order(store: Store, step: int) -> None:
    store.append([Committed(5)])
    with pytest.raises(
        ValueError, match=f"step={step} is not above 5.*another executor with resume_from={step}"
    ):
        store.append([Committed(step)])
    assert (store.last_step, store.steps()) == (5, [5])


def test_a_result_too_large_to_be_in_a_page_comes_back(directory: Path) -> None:
    results = {f"0:{size}": random.Random(size).randbytes(size) for size in (0, 1, 4_000, 4_096, 100_000)}
    records = [record for key, result in results.items() for record in accepted(key, result)]
    write(directory, *records, Committed(1))
    assert {one.key: one.result for one in read(directory, 1).finished} == results


@pytest.mark.parametrize(
    "key", ["", ":", "0:", "-1:2", "0:07", "0:٣", "1:a:b", "0:\0", "0:'; --", "0:\ud800", "0:" + "x" * 10_000]
)
def test_keys_of_any_characters_come_back(directory: Path, key: str) -> None:
    write(directory, Committed(0), Queued(key, 5, b"d"), *accepted("0:b"), Committed(1))
    with Store(directory) as store:
        found = store.read(1)
        assert [(one.key, one.epoch) for one in found.pending] == [(key, 5)]
        store.append([Ended(key, "rejected"), Committed(2)])
        store.compact()
    found = read(directory, 2)
    assert list(found.done) == [key] and key in found.done and not found.pending


def test_what_was_trained_is_kept_as_keys_alone(directory: Path) -> None:
    result = random.Random(1).randbytes(2**20)
    with Store(directory) as store:
        store.read()
        for step in range(20):
            key = f"0:{step}"
            store.append([*accepted(key, result), Delivered((key,)), Committed(step)])
            store.compact()
        assert len(store.read(19).done) == 20
    assert (directory / "journal.sqlite").stat().st_size < 6 * 2**20


def test_results_that_were_too_old_are_forgotten(directory: Path) -> None:
    with Store(directory) as store:
        store.read()
        for step in range(10):
            store.append([*accepted("0:0", bytes(2**20)), Reopened("0:0"), Committed(step)])
            store.compact()
        assert [one.key for one in store.read(9).pending] == ["0:0"]
    assert (directory / "journal.sqlite").stat().st_size < 4 * 2**20


def test_keys_of_an_epoch_that_is_over_become_one_row(directory: Path) -> None:
    with Store(directory) as store:
        store.read()
        for epoch, part in itertools.product(range(3), range(10)):
            keys = tuple(f"{epoch}:{10 * part + index}" for index in range(10))
            queued = [record for key in keys for record in accepted(key)]
            store.append([*queued, Delivered(keys), Committed(10 * epoch + part)])
            store.compact()
    for table in ("done", "done_copy"):
        with sqlite3.connect(directory / "journal.sqlite") as connection:
            rows = connection.execute(f"SELECT epoch, length(head) FROM {table}").fetchall()
        connection.close()
        assert [size < 40 for epoch, size in rows if epoch < 2] == [True, True]
    assert len(read(directory, 29).done) == 300


def test_a_hundred_thousand_keys_take_little_memory_once_they_are_done(directory: Path) -> None:
    keys = tuple(f"0:{number}" for number in range(100_000))
    with Store(directory) as store:
        store.read()
        store.append([Queued(key, 0, b"x" * 100) for key in keys])
        store.append([Delivered(keys), Committed(1)])
        store.append([Committed(2)])
        store.compact()
    tracemalloc.start()
    found = read(directory, 2)
    used, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.done) == 100_000 and "0:99999" in found.done and "0:100000" not in found.done
    assert used < 2**20 and most < 40 * 2**20


def test_keys_are_a_set() -> None:
    chance = random.Random(5)
    given = [f"{chance.randrange(3)}:{chance.randrange(40)}" for _ in range(200)] + ["a", "0:x", "0:01"]
    keys, expected = Keys(), set[str]()
    for start in range(0, len(given), 9):
        keys.update(given[start : start + 9])
        expected.update(given[start : start + 9])
        assert set(keys) == expected and len(keys) == len(expected)
        assert all((f"{epoch}:{index}" in keys) == (f"{epoch}:{index}" in expected)
                   for epoch in range(4) for index in range(41))  # fmt: skip
    assert 3 not in keys


def test_keys_of_earlier_epochs_are_forgotten() -> None:
    keys = Keys(["0:1", "1:2", "2:3", "3:4", "-1:2", "-7:x", "1:x", "1:", "2:y", "a", ":", "1", "0:01"])
    keys.drop_before(2)
    assert set(keys) == {"2:3", "3:4", "2:y", "a", ":", "1"}
    keys.drop_before(-3)
    assert len(keys) == 6


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_files_are_their_owners_alone(directory: Path, umask: int) -> None:
    directory.parent.joinpath("journal").mkdir(mode=0o700)
    old = os.umask(umask)
    try:
        with Store(directory) as store:
            store.read()
            store.append([Committed(1)])
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(old)
    names = ["journal.lock", "journal.sqlite", "journal.sqlite-shm", "journal.sqlite-wal"]
    assert modes == dict.fromkeys(names, 0o600)


def test_what_is_committed_is_synced_and_what_is_deleted_is_overwritten(store: Store) -> None:
    """Carving takes whatever rows it finds: a deleted one must not be among them."""
    found = [
        store._opened().execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "secure_delete")
    ]
    assert found == [2, 1]


def test_a_directory_that_is_made_is_its_owners_alone(store: Store, directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(JournalError, match="cannot be used"), Store(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.any_loop
def test_a_directory_that_cannot_be_written_is_refused(run_script: RunScript, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    script = run_script(
        """
        import os, sys
        from areal_core.errors import JournalError
        from areal_core._journal.store import Store

        if os.getuid() == 0:
            os.setuid(65534)
        os.chdir("/")
        try:
            Store(sys.argv[1]).open()
        except JournalError as error:
            print(type(error.__cause__).__name__)
        """,
        "/proc/journal",
    )
    assert script.returncode == 0 and script.stdout in ("FileNotFoundError\n", "PermissionError\n")


def test_one_store_at_a_time_has_a_directory(store: Store, directory: Path) -> None:
    with (
        pytest.raises(JournalError, match=r"in use by this process: destroy\(\) the executor"),
        Store(directory),
    ):
        pass
    store.append([Committed(1)])
    store.close()
    assert read(directory, 1).step == 1


def test_the_number_of_a_process_elsewhere_is_not_taken_for_this_one(directory: Path) -> None:
    """In two containers both processes may be number 1."""
    directory.mkdir()
    with (directory / "journal.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        with pytest.raises(JournalError, match=f"in use by process {os.getpid()};"), Store(directory):
            pass


def test_a_lock_that_is_waited_for_is_tried_again(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            store.close()

    monkeypatch.setattr("areal_core._journal.lock.time.sleep", nap)
    patient = Store(directory)
    patient.open(patience_s=60.0)
    assert naps == [0.05] * 3 and patient.steps() == []
    patient.close()


def test_patience_ends(store: Store, directory: Path) -> None:
    with pytest.raises(JournalError, match="in use by this process"):
        Store(directory).open(patience_s=0.12)


def test_a_lock_whose_making_was_interrupted_goes_silently() -> None:
    lock.DirectoryLock.__new__(lock.DirectoryLock).__del__()


def test_a_lock_that_is_collected_is_given_back(tmp_path: Path) -> None:
    first = lock.DirectoryLock(tmp_path / "lock")
    first.acquire()
    del first
    gc.collect()
    second = lock.DirectoryLock(tmp_path / "lock")
    second.acquire()
    second.release()


@pytest.mark.any_loop
def test_a_lock_that_is_collected_in_a_forked_child_stays_with_its_parent(
    run_script: RunScript, tmp_path: Path
) -> None:
    script = run_script(
        """
        import gc, os, sys
        from pathlib import Path
        from areal_core._journal.lock import DirectoryLock
        from areal_core.errors import JournalError

        held = [DirectoryLock(Path(sys.argv[1]))]
        held[0].acquire()
        child = os.fork()
        held.clear() if not child else None
        if not child:
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        try:
            DirectoryLock(Path(sys.argv[1])).acquire()
        except JournalError as error:
            print("in use by this process" in str(error))
        """,
        str(tmp_path / "lock"),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "True\n", "")


@pytest.mark.any_loop
def test_another_process_is_named_and_its_death_frees_the_directory(
    start_script: StartScript, directory: Path
) -> None:
    child = start_script(
        """
        import sys
        from areal_core._journal.records import Committed
        from areal_core._journal.store import Store

        store = Store(sys.argv[1])
        store.open()
        store.read()
        store.append([Committed(3)])
        print("open", flush=True)
        sys.stdin.read()
        """,
        str(directory),
    )
    assert child.stdout is not None and child.stdout.readline() == "open\n"
    with pytest.raises(JournalError, match=f"in use by process {child.pid};"), Store(directory):
        pass
    child.kill()
    child.wait()
    assert read(directory, 3).step == 3


@pytest.mark.any_loop
def test_a_forked_child_leaves_the_journal_alone_and_holds_no_lock(
    run_script: RunScript, directory: Path
) -> None:
    script = run_script(
        """
        import os, sys, warnings
        from areal_core._journal.records import Committed
        from areal_core.errors import JournalError
        from areal_core._journal.store import Store
        from areal_core._journal.writer import Writer

        warnings.simplefilter("ignore")
        store = Store(sys.argv[1])
        store.open()
        store.read()
        writer = Writer(store)
        writer.put(Committed(1))
        writer.flush()
        told, tell = os.pipe()
        wait, go = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            writer.put(Committed(2))
            writer.close()
            for act in (lambda: store.append([Committed(2)]), writer.flush):
                try:
                    act()
                except JournalError:
                    os.write(tell, b"refused ")
            store.close()
            os.read(wait, 1)
            sys.exit()
        print(os.read(told, 8), os.read(told, 8))
        writer.put(Committed(5))
        writer.close()
        store.close()
        with Store(sys.argv[1]) as again:  # the child still lives
            print(again.steps())
        os.close(go)
        print(os.waitpid(child, 0)[1])
        with Store(sys.argv[1]) as again:
            print(again.steps())
        """,
        str(directory),
    )
    assert (script.returncode, script.stderr) == (0, "")
    assert script.stdout == "b'refused ' b'refused '\n[1, 5]\n0\n[1, 5]\n"


def test_nothing_of_a_batch_that_fails_is_written(store: Store, directory: Path) -> None:
    bad = Committed("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.append([Queued("0:a", 0), Committed(1), bad])
    store.append([Committed(1)])
    store.close()
    assert read(directory, 1).pending == ()


@pytest.mark.any_loop
def test_a_full_disk_loses_nothing_that_was_written(run_script: RunScript, directory: Path) -> None:
    script = run_script(
        """
        import resource, signal, sys
        from areal_core._journal.records import *
        from areal_core.errors import JournalError
        from areal_core._journal.store import Store

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store(sys.argv[1])
        store.open()
        store.read()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        written = 0
        try:
            while True:
                store.append([Queued(f"0:{written}", 0, bytes(10_000))])
                written += 1
        except JournalError as error:
            print(written > 3, "could not be written" in str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.append([Queued(f"0:{written}", 0, bytes(10_000)), Committed(written)])
        store.close()
        """,
        str(directory),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "True True\n", "")
    with Store(directory) as store:
        (step,) = store.steps()
        assert [one.key for one in store.read(step).pending] == [f"0:{n}" for n in range(step + 1)]


# ---- damage

Harm = Callable[[bytearray, random.Random], object]


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 3, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def overwrite(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((16, 512, 4096, 20_000))
    start = chance.randrange(len(data)) // 512 * 512
    data[start : start + size] = chance.choice((bytes(size), chance.randbytes(size)))[: len(data) - start]


def drop_page(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data)) // 4096 * 4096
    del data[start : start + 4096]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """Make a journal whose file and write-ahead log both have much in them; and what it was told."""
    directory = tmp_path_factory.mktemp("written")
    model = Model()
    records: list[Record] = [Committed(0), *plan(model.tell_all([Committed(0)]), 3, 400)]
    with Store(directory / "live") as store:
        store.read()
        for start in range(0, len(records), 10):
            store.append(records[start : start + 10])
            if start % 100 == 50:
                store.compact()
            if start == 250:
                store._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copytree(directory / "live", directory / "copy")
    assert (directory / "copy" / "journal.sqlite-wal").stat().st_size > 50_000
    assert (directory / "copy" / "journal.sqlite").stat().st_size > 50_000
    return directory / "copy", records


def check_nothing_is_wrong(found: Recovered, records: list[Record]) -> None:
    """Assert that what was found is less than what was written, and nothing else."""
    data = {one.key: one.data for one in records if isinstance(one, Queued)}
    results = {(one.key, one.result) for one in records if isinstance(one, Ended)}
    given = {key for one in records if isinstance(one, Delivered) for key in one.keys}
    settled = {one.key for one in records if isinstance(one, Ended) and one.status != "accepted"}
    assert set(found.done) <= given | settled
    for one in found.finished:
        assert (one.key, one.result) in results
    assert all(one.data in (None, data[one.key]) for one in found.finished)
    assert all(one.data in (None, data[one.key]) for one in found.pending)


def check_trained_is_done(found: Recovered, records: list[Record]) -> None:
    commit = records.index(Committed(found.step if found.step is not None else -1))
    trained = set[str]()
    for one in records[:commit]:
        if isinstance(one, Delivered):
            trained.update(one.keys)
        elif isinstance(one, Returned):
            trained.difference_update(one.keys)
    assert trained.isdisjoint(one.key for one in found.finished)
    assert trained.isdisjoint(one.key for one in found.pending)


@pytest.mark.parametrize("suffix", ["", "-wal"], ids=["file", "log"])
@pytest.mark.parametrize("harm", [flip, truncate, overwrite, drop_page], ids=lambda harm: harm.__name__)
def test_damage_costs_what_it_hit_and_is_reported(
    written: tuple[Path, list[Record]], tmp_path: Path, harm: Harm, suffix: str
) -> None:
    source, records = written
    prefixes = [Model()]
    states = set()
    for record in records:
        prefixes[0].tell(record)
        for step in prefixes[0].steps():
            states.add((step, prefixes[0].state(step)))
    resumed = 0
    for seed in range(60):
        directory = tmp_path / str(seed)
        shutil.copytree(source, directory)
        path = directory / f"journal.sqlite{suffix}"
        data = bytearray(path.read_bytes())
        harm(data, random.Random(seed))
        path.write_bytes(data)
        with Store(directory) as store:
            for step in store.steps():
                found = store.read(step)
                check_nothing_is_wrong(found, records)
                if not found.damaged:
                    assert (step, state_of(found)) in states
                resumed += 1
            if store.steps():  # and goes on, and is whole then
                store.read(store.steps()[-1])
                store.append([Committed(1_000)])
                store.compact()
        with Store(directory) as store:
            for step in store.steps():
                assert store.read(step).damaged == 0
        shutil.rmtree(directory)
    assert resumed > 60


def test_each_page_of_the_file_may_be_lost_and_the_others_are_read(
    written: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    source, records = written
    whole = tmp_path / "whole"
    shutil.copytree(source, whole)
    with Store(whole) as store:
        step = store.steps()[-1]
        before = store.read(step)
    size = (whole / "journal.sqlite").stat().st_size
    kept = list[int]()
    for start in range(0, size, 4096):
        directory = tmp_path / str(start)
        shutil.copytree(whole, directory)
        with (directory / "journal.sqlite").open("r+b") as file:
            file.seek(start)
            file.write(random.Random(start).randbytes(4096))
        with Store(directory) as store:
            if step not in store.steps():
                continue
            found = store.read(step)
        check_nothing_is_wrong(found, records)
        check_trained_is_done(found, records)
        kept.append(sum(len(part) for part in (found.done, found.finished, found.pending)))
        shutil.rmtree(directory)
    total = sum(len(part) for part in (before.done, before.finished, before.pending))
    assert len(kept) > 0.9 * size / 4096
    assert min(kept[:3]) == total  # the first page and the roots lead to rows, and have none
    assert sum(kept) > 0.97 * total * len(kept)


def test_a_damaged_file_is_kept_as_it_was(written: tuple[Path, list[Record]], tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    shutil.copytree(written[0], directory)
    with Store(directory):  # nothing is left in the log then
        pass
    kept: list[Path] = []
    for number in (1, 2):
        data = b"no database" + (directory / "journal.sqlite").read_bytes()[11:]
        (directory / "journal.sqlite").write_bytes(data)
        with Store(directory) as store:
            found = store.read(store.steps()[-1])
        kept.append(directory / f"journal.sqlite.damaged-{number}")
        assert found.damaged >= number and found.kept_beside == tuple(kept), "nobody went on from it yet"
        assert kept[-1].read_bytes() == data
        assert stat.S_IMODE(kept[-1].stat().st_mode) == 0o600
    assert stat.S_IMODE((directory / "journal.sqlite").stat().st_mode) == 0o600


def test_a_file_that_is_emptied_is_read_from_its_log(
    written: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    shutil.copytree(written[0], directory)
    (directory / "journal.sqlite").write_bytes(b"")
    with Store(directory) as store:
        found = store.read(store.steps()[-1])
    assert found.damaged and len(found.done) + len(found.finished) + len(found.pending) > 10
    check_nothing_is_wrong(found, written[1])


def test_of_the_log_what_comes_after_damage_is_read_too(
    written: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    source, records = written
    wal = (source / "journal.sqlite-wal").read_bytes()
    last = max(one.step for one in records if isinstance(one, Committed))
    for place in (4, 10, 17, 32 + 10, 32 + 100, len(wal) // 2):  # of the header, of a frame's, in pages
        directory = tmp_path / str(place)
        shutil.copytree(source, directory)
        changed = bytearray(wal)
        changed[place] ^= 0x10
        (directory / "journal.sqlite-wal").write_bytes(changed)
        with Store(directory) as store:
            assert store.steps()[-1] == last
            found = store.read(last)
        assert found.damaged and found.kept_beside[0].with_name("journal.sqlite.damaged-1-wal").exists()
        check_nothing_is_wrong(found, records)
        check_trained_is_done(found, records)


def damage_row(directory: Path, change: str) -> None:
    connection = sqlite3.connect(directory / "journal.sqlite", isolation_level=None)
    assert connection.execute(change).rowcount == 1
    connection.close()


def test_a_damaged_result_makes_a_key_that_runs_again_and_damaged_data_one_without(directory: Path) -> None:
    write(
        directory,
        *accepted("0:a", b"result"),
        Queued("0:b", 0, b"data"),
        Queued("0:c", 0, b"c"),
        Committed(1),
    )
    damage_row(directory, "UPDATE log SET body = x'00' WHERE row = 2")
    damage_row(directory, "UPDATE log SET body = x'00' WHERE row = 3")
    with Store(directory) as store:
        found = store.read(1)
        assert [(one.key, one.data) for one in found.pending] == [("0:a", b"d"), ("0:b", None), ("0:c", b"c")]
        assert (found.finished, found.damaged) == ((), 2)
        store.append([])
    assert read(directory, 1).damaged == 0
    assert state_of(read(directory, 1)) == state_of(found)


def test_a_damaged_delivery_is_known_from_its_commit(directory: Path) -> None:
    write(directory, *accepted("0:a"), Delivered(("0:a",)), Committed(1))
    damage_row(directory, "UPDATE log SET head = x'0011' WHERE row = 3")
    found = read(directory, 1)
    assert (list(found.done), found.damaged) == (["0:a"], 1)


def test_a_row_that_was_moved_is_damaged(directory: Path) -> None:
    write(directory, Queued("0:a", 0, b"d"), Committed(1))
    damage_row(directory, "UPDATE log SET row = 5 WHERE row = 1")
    found = read(directory, 1)
    assert (found.pending, found.damaged) == ((), 1)


def test_a_salvaged_file_that_had_not_taken_its_place_does_so_without_the_old_log(directory: Path) -> None:
    write(directory, Queued("0:a", 0), Committed(1))
    (directory / "journal.sqlite").rename(directory / "journal.sqlite.salvaged")
    for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"):
        (directory / name).write_bytes(b"the old one's")
    with Store(directory) as store:
        found = store.read(1)
    assert ([one.key for one in found.pending], found.damaged) == (["0:a"], 0)
    assert sorted(path.name for path in directory.iterdir()) == ["journal.lock", "journal.sqlite"]


@pytest.mark.parametrize("table", ["log", "log_copy"])
def test_a_damaged_commit_is_known_from_its_copy_and_put_right(directory: Path, table: str) -> None:
    write(directory, *accepted("0:a"), Delivered(("0:a",)), Committed(1))
    damage_row(directory, f"UPDATE {table} SET head = x'0011' WHERE row = 4")
    with Store(directory) as store:
        found = store.read(1)
        assert (list(found.done), found.damaged) == (["0:a"], 1)
        store.append([])
    other = "log" if table == "log_copy" else "log_copy"
    damage_row(directory, f"UPDATE {other} SET head = x'0011' WHERE row = 4")
    assert list(read(directory, 1).done) == ["0:a"]


@pytest.mark.parametrize("table", ["done", "done_copy"])
def test_a_damaged_row_of_trained_keys_is_known_from_its_copy(directory: Path, table: str) -> None:
    write(directory, *accepted("0:a"), Delivered(("0:a",)), Committed(1), Committed(2))
    with Store(directory) as store:
        store.read(2)
        store.append([])
        store.compact()
    damage_row(directory, f"UPDATE {table} SET head = x'00' WHERE row = 1")
    found = read(directory, 2)
    assert (list(found.done), found.damaged) == (["0:a"], 1)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_database_of_something_else_is_refused_and_left_as_it_is(directory: Path, version: int) -> None:
    directory.mkdir()
    connection = sqlite3.connect(directory / "journal.sqlite")
    connection.execute("CREATE TABLE users (name)")
    connection.execute(f"PRAGMA user_version={version}")
    connection.close()
    with pytest.raises(JournalError, match="a database of something else, with 'users'"), Store(directory):
        pass
    connection = sqlite3.connect(directory / "journal.sqlite")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("users",)]
    connection.close()


@pytest.mark.parametrize("version", [2, 3, 100])
def test_a_file_of_a_later_version_is_refused_and_left_as_it_is(directory: Path, version: int) -> None:
    write(directory, Committed(1))
    connection = sqlite3.connect(directory / "journal.sqlite")
    connection.execute(f"PRAGMA user_version={version}")
    connection.execute(f"PRAGMA application_id={int.from_bytes(b'arl') * 256 + version}")
    connection.close()
    before = (directory / "journal.sqlite").read_bytes()
    with (
        pytest.raises(JournalError, match=f"later version of areal_core: its format is {version},"),
        Store(directory),
    ):
        pass
    assert (directory / "journal.sqlite").read_bytes() == before
