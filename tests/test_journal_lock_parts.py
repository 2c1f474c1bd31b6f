"""The lock of a journal's directory: who is told to have it, what is in its file, and how long one waits."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from areal_core._journal import lock
from areal_core._journal.lock import DirectoryLock
from areal_core.errors import JournalError
from journal_parts import Clock, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextmanager
def elsewhere(path: Path, content: str = "") -> Iterator[None]:
    """Have the lock of *path* as another process has it, which has written *content*."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        file.flush()
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lock, "time", clock)
    return clock


def test_who_says_no_patience_has_none(path: Path, clock: Clock) -> None:
    with elsewhere(path), pytest.raises(JournalError, match="in use by process"):
        DirectoryLock(path).acquire()
    assert clock.naps == []


def test_the_last_try_is_when_patience_ends(path: Path, clock: Clock) -> None:
    with elsewhere(path), pytest.raises(JournalError, match="in use by process"):
        DirectoryLock(path).acquire(0.125)
    assert clock.naps == pytest.approx([0.05, 0.05, 0.025])


def test_the_file_is_its_owners_alone_from_the_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask may take from the mode, which is put right; it may not have been more before."""
    modes: list[int] = []
    real = os.fchmod

    def spy(descriptor: int, mode: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", spy)
    held = DirectoryLock(path)
    held.acquire()
    held.release()
    assert modes == [0o600]


def test_the_file_says_who_has_it_and_nothing_of_who_had_it_before(path: Path) -> None:
    path.write_text("9" * 20)
    held = DirectoryLock(path)
    held.acquire()
    assert path.read_text() == str(os.getpid())
    held.release()


def test_where_no_number_can_be_written_there_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    path.write_text("9" * 20)
    held = DirectoryLock(path)
    held.acquire()
    assert (path.read_text(), opened(path)) == ("", 1)
    held.release()


def test_a_lock_that_another_has_is_not_left_open(path: Path) -> None:
    with elsewhere(path):
        with pytest.raises(JournalError, match="in use by process"):
            DirectoryLock(path).acquire()
        assert opened(path) == 1


def test_where_there_are_no_locks_it_says_so_and_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    held = DirectoryLock(path)
    with pytest.raises(OSError, match="No locks available"):
        held.acquire()
    assert opened(path) == 0


def test_this_process_is_not_said_to_have_what_it_gave_back(path: Path) -> None:
    held = DirectoryLock(path)
    held.acquire()
    held.release()
    with elsewhere(path, "17"), pytest.raises(JournalError, match="in use by process 17;"):
        DirectoryLock(path).acquire()


def test_who_has_one_journal_is_not_told_to_have_another(path: Path) -> None:
    held = DirectoryLock(path.with_name("own"))
    held.acquire()
    with elsewhere(path), pytest.raises(JournalError, match="in use by process unknown;"):
        DirectoryLock(path).acquire()
    held.release()


def test_of_a_file_with_something_else_in_it_only_the_beginning_is_shown(path: Path) -> None:
    with (
        elsewhere(path, "abcdefghij" * 9),
        pytest.raises(JournalError, match="in use by process abcdefghijabcdefghij;"),
    ):
        DirectoryLock(path).acquire()
