"""Damage that is found, what it costs, and who is told of it."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from areal_core._journal import salvage
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record, Reopened, Returned
from areal_core._journal.rows import head_of, seal
from areal_core._journal.store import Store
from areal_core.errors import JournalError
from areal_core.journal import resumable_steps
from children import RunScript
from journal_plans import state_of

NAME = "journal.sqlite"


def accepted(*keys: str) -> list[Record]:
    return [
        record for key in keys for record in (Queued(key, 0, b"d" * 300), Ended(key, "accepted", b"r" * 700))
    ]


def written(directory: Path) -> Path:
    """Write a journal whose process is killed then: all that happened is in its log."""
    with Store(directory / "live") as store:
        store.read()
        store.append([Committed(0)])
        for index in range(8):
            store.append(accepted(f"0:{index}"))
        store.append([Delivered(("0:0", "0:1"))])
        store.append([Committed(1)])
        shutil.copytree(directory / "live", directory / "killed")
    return directory / "killed"


def flip(path: Path, place: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def damaged(directory: Path) -> Path:
    """Return the same with a flipped bit in its log, of which SQLite ignores the second half then."""
    killed = written(directory)
    flip(killed / f"{NAME}-wal", (killed / f"{NAME}-wal").stat().st_size // 2)
    return killed


def change(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / NAME, isolation_level=None)
    assert connection.execute(statement).rowcount == 1
    connection.close()


@pytest.mark.any_loop
@pytest.mark.parametrize("limit", [0, 5_000, 70_000])
def test_a_disk_that_is_full_while_a_damaged_log_is_salvaged_costs_nothing(
    run_script: RunScript, tmp_path: Path, limit: int
) -> None:
    directory = damaged(tmp_path)
    before = (directory / f"{NAME}-wal").read_bytes()
    script = run_script(
        """
        import resource, signal, sys
        from areal_core._journal.store import Store
        from areal_core.errors import JournalError

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        try:
            Store(sys.argv[1]).open()
        except JournalError as error:
            print("cannot be used" in str(error))
        """,
        str(directory),
        str(limit),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "True\n", "")
    assert (directory / f"{NAME}-wal").read_bytes() == before
    assert not list(directory.glob("*.damaged-*"))
    with Store(directory) as store:
        assert store.steps() == [0, 1]
        found = store.read(1)
    assert list(found.done) == ["0:0", "0:1"] and len(found.finished) == 6 and found.damaged


def test_sqlite_is_not_shown_a_damaged_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would delete what comes after the damage when it is closed, of which nobody had a copy yet."""
    directory = damaged(tmp_path)
    before = (directory / f"{NAME}-wal").read_bytes()
    copied: list[bool] = []
    connect = sqlite3.connect

    def spy(path: Path, **options: object) -> sqlite3.Connection:
        if not str(path).endswith("immutable=1"):  # with which it leaves the log alone
            copied.append([one.read_bytes() for one in directory.glob("*.damaged-*-wal")] == [before])
        return connect(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", spy)
    with Store(directory):
        pass
    assert copied and all(copied)


@pytest.mark.parametrize("changes", [("DROP TABLE log", "DROP TABLE log_copy", "DROP TABLE done",
                                      "DROP TABLE done_copy", "CREATE TABLE users (name)"),
                                     ("PRAGMA user_version=2", f"PRAGMA application_id={0x61726C02}")],
                         ids=["something-else", "a-later-version"])  # fmt: skip
def test_a_file_that_is_not_its_own_is_left_alone_with_its_damaged_log(
    directory: Path, changes: tuple[str, ...]
) -> None:
    with Store(directory):
        pass
    connection = sqlite3.connect(directory / NAME)
    for change in changes:
        connection.execute(change)
    connection.close()
    (directory / f"{NAME}-wal").write_bytes(b"damaged" * 1_000)
    before = {path: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(JournalError, match=r"something else|later version"), Store(directory):
        pass
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_a_disk_that_is_full_once_sqlite_has_the_log_leaves_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = written(tmp_path)
    with (directory / NAME).open("r+b") as file:
        file.seek(4 * 4_096)  # a table of which the log has nothing
        file.write(b"\xff" * 8)
    before = [(directory / f"{NAME}{suffix}").read_bytes() for suffix in ("", "-wal")]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(salvage, "_write", full)
        with pytest.raises(JournalError, match="No space left"), Store(directory):
            pass
        kept = [(directory / f"{NAME}.damaged-new{suffix}").read_bytes() for suffix in ("", "-wal")]
        assert kept == before
        with pytest.raises(JournalError, match="No space left"), Store(directory):
            pass
    with Store(directory) as store:
        found = store.read(1)
        assert len(found.finished) == 6 and list(found.done) == ["0:0", "0:1"] and found.damaged
    assert {one.name[:24] for one in directory.glob("*.damaged-*")} == {f"{NAME}.damaged-1"}


def test_a_row_that_is_left_in_its_copy_alone_is_not_written_over(directory: Path) -> None:
    with Store(directory) as store:
        store.read()
        store.append([*accepted("0:0"), Delivered(("0:0",)), Committed(0)])
    change(directory, "DELETE FROM log WHERE row = 4")
    with Store(directory) as store:
        assert store.steps() == [0]
        store.read(0)
        store.append([Queued("0:1", 0, b"d")])
    with Store(directory) as store:
        found = store.read(0)
    assert (list(found.done), [one.key for one in found.pending]) == (["0:0"], ["0:1"])


def test_a_compaction_before_it_is_read_does_not_take_the_news_of_damage(tmp_path: Path) -> None:
    directory = damaged(tmp_path)
    with Store(directory) as store:
        store.compact()
    with Store(directory) as store:
        found = store.read(1)
    assert (found.damaged, found.kept_beside) == (1, (directory / f"{NAME}.damaged-1",))


def test_of_a_row_that_is_found_twice_the_whole_one_counts() -> None:
    head, body = head_of(3, Ended("0:0", "accepted", b"result"))
    columns = [[None, seal(head), one] for one in (b"damaged", body)]
    for one, other in (columns, columns[::-1]):
        found = salvage._Found()
        found.add(3, list(one))
        found.add(3, list(other))
        assert found.log[3] == (head, body)
    queued, data = head_of(4, Queued("0:0", 0, b"data"))
    for bodies in ((b"damaged", data), (data, b"damaged")):
        found = salvage._Found()
        for some in bodies:
            found.add(4, [None, seal(queued), some])
        assert found.log[4] == (queued, data)


def test_of_a_commit_that_is_found_twice_the_keys_of_both_are_done() -> None:
    some = [head_of(5, Committed(1), keys)[0] for keys in ((b"0:0", b"0:1"), (b"0:1", b"0:2"))]
    other_step, _ = head_of(5, Committed(0), (b"0:3",))
    for heads in (some, some[::-1]):
        found = salvage._Found()
        for head in [*heads, other_step]:
            found.add(5, [None, seal(head), None])
        assert (found.log[5][0].number, sorted(found.log[5][0].keys)) == (1, [b"0:0", b"0:1", b"0:2"])


def test_damage_is_told_until_somebody_goes_on_from_it(tmp_path: Path) -> None:
    directory = damaged(tmp_path)
    kept = (directory / f"{NAME}.damaged-1",)
    for _ in range(2):
        assert resumable_steps(directory) == [0, 1]
        with Store(directory) as store:
            found = store.read(1)
            assert (found.damaged, found.kept_beside) == (1, kept)
    with Store(directory) as store:
        state = state_of(store.read(1))
        store.append([])
        again = store.read(1)
        assert (again.damaged, again.kept_beside, state_of(again)) == (0, (), state)
        store.append([Committed(2)])
        store.compact()
    with Store(directory) as store:
        assert (store.read(2).damaged, state_of(store.read(1))) == (0, state)


def test_what_two_salvages_found_is_told_together(tmp_path: Path) -> None:
    directory = damaged(tmp_path)
    resumable_steps(directory)
    (directory / NAME).write_bytes(b"no database" + (directory / NAME).read_bytes()[11:])
    with Store(directory) as store:
        found = store.read(1)
    assert found.damaged == 2
    assert found.kept_beside == tuple(directory / f"{NAME}.damaged-{number}" for number in (1, 2))


@pytest.mark.parametrize("table", ["log", "log_copy"])
@pytest.mark.parametrize("taken_back", [Returned(("0:1",)), Reopened("0:1")], ids=["returned", "reopened"])
def test_what_takes_a_delivery_back_is_known_from_its_copy_and_put_right(
    directory: Path, table: str, taken_back: Record
) -> None:
    with Store(directory) as store:
        store.read()
        store.append([*accepted("0:0", "0:1"), Delivered(("0:0",)), Delivered(("0:1",))])
        store.append([taken_back, Committed(0), Committed(1)])
    with Store(directory) as store:
        states = [state_of(store.read(step)) for step in (0, 1)]
    change(directory, f"UPDATE {table} SET head = x'0011' WHERE row = 7")
    with Store(directory) as store:
        assert [state_of(store.read(step)) for step in (0, 1)] == states
        assert store.read(0).damaged == 1
        store.read(1)
        store.append([])
        assert store.read(1).damaged == 0
    other = "log" if table == "log_copy" else "log_copy"
    change(directory, f"UPDATE {other} SET head = x'0011' WHERE row = 7")
    with Store(directory) as store:
        assert [state_of(store.read(step)) for step in (0, 1)] == states


@pytest.mark.parametrize("is_marked", [True, False], ids=["marked", "as-written-before-there-was-a-mark"])
@pytest.mark.parametrize("place", [60, 61, 62, 63, 68, 69, 70, 71])
def test_a_flipped_bit_makes_it_no_later_version_and_nobody_elses(
    directory: Path, place: int, is_marked: bool
) -> None:
    """The bytes are those of ``user_version`` and ``application_id`` in the file's header."""
    with Store(directory) as store:
        store.read()
        store.append([*accepted("0:0"), Committed(0)])
    if not is_marked:
        connection = sqlite3.connect(directory / NAME)
        connection.execute("PRAGMA application_id=0")
        connection.close()
    with Store(directory) as store:
        before = store.read(0)
    assert before.damaged == 0
    whole = (directory / NAME).read_bytes()
    for bit in range(8):
        (directory / NAME).write_bytes(whole)
        flip(directory / NAME, place, 1 << bit)
        with Store(directory) as store:
            found = store.read(0)
        assert (state_of(found), found.damaged) == (state_of(before), 1)


def test_a_file_without_one_of_its_tables_is_damaged(directory: Path) -> None:
    with Store(directory) as store:
        store.read()
        store.append([*accepted("0:0"), Committed(0)])
    connection = sqlite3.connect(directory / NAME)
    connection.execute("DROP TABLE log")
    connection.close()
    with Store(directory) as store:
        assert store.steps() == [0], "there is a copy"
        assert store.read(0).damaged


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the paths that Python had synced, as they were called then."""
    paths: list[Path] = []
    real: Callable[[int], None] = os.fsync

    def spy(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    return paths


def test_the_directories_that_are_made_are_on_the_disk_before_anything_in_them(
    tmp_path: Path, synced: list[Path]
) -> None:
    with Store(tmp_path / "a" / "b" / "journal"):
        pass
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "journal"} <= set(synced)


def test_the_copies_of_what_was_damaged_are_on_the_disk_before_the_originals_go(
    tmp_path: Path, synced: list[Path]
) -> None:
    directory = damaged(tmp_path)
    synced.clear()
    with Store(directory):
        pass
    kept = [directory / f"{NAME}.damaged-new", directory / f"{NAME}.damaged-new-wal"]
    assert synced[:4] == [kept[0], directory, kept[1], directory]


def test_a_directory_in_one_that_may_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(JournalError, match="cannot be used"), Store(tmp_path / "file" / "a" / "b"):
        pass
