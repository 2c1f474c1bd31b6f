"""The file's tables and its connections: what a new file says of itself, and which others are refused."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from areal_core._journal.schema import (
    check_whose,
    connect,
    create,
    is_damage,
    make_directory,
    sync_directory,
)
from areal_core.errors import JournalError
from journal_parts import changed, opened

MARK = int.from_bytes(b"arl\1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def made(path: Path) -> Path:
    """Make a journal's file."""
    connect(path, mode="DELETE").close()
    return path


def reopened(path: Path) -> None:
    connect(path).close()


# ---- files and directories


def test_a_file_that_is_there_is_not_made_again(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        create(path)


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_a_file_is_its_owners_alone_from_the_first(
    path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask may take from the mode, which is put right; it may not have been more before."""
    modes: list[int] = []
    real = Path.chmod

    def spy(path: Path, mode: int) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        real(path, mode)

    monkeypatch.setattr(Path, "chmod", spy)
    old = os.umask(umask)
    try:
        create(path)
    finally:
        os.umask(old)
    assert (modes, stat.S_IMODE(path.stat().st_mode)) == ([0o600 & ~umask], 0o600)


def test_of_a_file_there_are_no_names_to_be_had_on_the_disk(path: Path) -> None:
    path.touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(path)


def test_a_directory_is_not_left_open(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    assert opened(tmp_path) == 0


def test_a_directory_is_made_in_one_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o333)
    if os.getuid() == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            sync_directory(Path())
        make_directory(Path("one/two"))
    finally:
        os.seteuid(os.getuid())
        tmp_path.chmod(0o700)
    assert Path("one/two").is_dir()


# ---- connections


def test_a_new_file_says_whose_it_is_and_of_which_version(path: Path) -> None:
    connection = connect(path)
    found = [
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
    ]
    connection.close()
    assert found == [1, MARK]


def test_of_its_log_64_mib_are_kept_after_a_large_transaction(path: Path) -> None:
    connection = connect(path)
    (limit,) = connection.execute("PRAGMA journal_size_limit").fetchone()
    connection.close()
    assert limit == 67_108_864


def test_a_file_of_the_first_ones_which_had_no_mark_is_taken(path: Path) -> None:
    reopened(changed(made(path), "PRAGMA application_id=0"))
    check_whose(path)


@pytest.mark.parametrize("look", [reopened, check_whose])
def test_a_database_of_something_else_is_named_and_not_left_open(
    path: Path, look: Callable[[Path], None]
) -> None:
    changed(path, "CREATE TABLE users (name)")
    with pytest.raises(
        JournalError, match=f"^{re.escape(str(path))} is a database of something else, with 'users';"
    ) as caught:
        look(path)
    assert caught.tb is not None  # whose frames keep what they refer to
    assert opened(path) == 0


def test_what_is_whole_is_looked_at_and_not_left_open(path: Path) -> None:
    check_whose(made(path))
    assert opened(path) == 0


@pytest.mark.parametrize("look", [connect, check_whose])
def test_a_database_with_a_name_that_is_no_text_is_something_elses(
    path: Path, look: Callable[[Path], object]
) -> None:
    changed(path, "CREATE TABLE users (name)")
    path.write_bytes(path.read_bytes().replace(b"users", b"us\xffrs"))
    with pytest.raises(JournalError, match="a database of something else, with 'us\ufffdrs';"):
        look(path)


@pytest.mark.parametrize("look", [reopened, check_whose])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["PRAGMA user_version=0", "PRAGMA application_id=0"], "version 0, mark 0 and [('done',"),
        (["PRAGMA user_version=2", "PRAGMA application_id=0"], "version 2, mark 0 and [('done',"),
        (["PRAGMA user_version=2"], f"version 2, mark {MARK} and [('done',"),
        (["PRAGMA application_id=1"], "version 1, mark 1 and [('done',"),
        (["PRAGMA application_id=-1"], "version 1, mark -1 and [('done',"),
        (["DROP TABLE done"], f"version 1, mark {MARK} and [('done_copy',"),
    ],
)
def test_a_file_that_says_of_itself_what_none_says_is_damaged(
    path: Path, changes: list[str], words: str, look: Callable[[Path], None]
) -> None:
    changed(made(path), *changes)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        look(path)
    assert f"the file says {words}" in str(caught.value) and is_damage(caught.value)


def test_a_file_without_tables_that_has_a_version_is_damaged(path: Path) -> None:
    changed(path, "PRAGMA user_version=1")
    with pytest.raises(sqlite3.DatabaseError, match=r"the file says version 1, mark 0 and \[\]"):
        check_whose(path)


# ---- errors


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_BUSY, False),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, False),
        (sqlite3.SQLITE_IOERR_READ, False),
        (sqlite3.SQLITE_IOERR_SHORT_READ, True),
        (sqlite3.SQLITE_CORRUPT, True),
        (sqlite3.SQLITE_CORRUPT_INDEX, True),
        (sqlite3.SQLITE_NOTADB, True),
    ],
)
def test_errors_of_the_disk_and_of_others_are_told_from_damage(code: int, expected: bool) -> None:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    assert is_damage(error) is expected


def test_what_is_found_wrong_without_sqlites_help_is_damage() -> None:
    assert is_damage(sqlite3.DatabaseError("the write-ahead log is damaged"))
