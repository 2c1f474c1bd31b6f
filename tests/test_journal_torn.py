"""Transactions of which a kill, or a loss of power, left a part: what may lie on the disk then is opened.

SQLite writes a frame of its write-ahead log in two pieces, its header and its page, over what an earlier
round left there. The files before and after a transaction are real; all that may lie between them is made of
their bytes: after a kill the first so many of those that were written, after a loss of power any of them.
"""

from __future__ import annotations

import copy
import itertools
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from areal_core._journal.records import Committed, Ended, Queued, Record
from areal_core._journal.store import Store
from areal_core._journal.wal import Wal
from journal_plans import Model, State, plan, state_of

NAME = "journal.sqlite"
HEADER, FRAME_HEADER, PAGE = 32, 24, 4096
FRAME = FRAME_HEADER + PAGE


class Files(NamedTuple):
    database: bytes
    log: bytes


def copied(directory: Path) -> Files:
    return Files((directory / NAME).read_bytes(), (directory / f"{NAME}-wal").read_bytes())


def checkpoint(directory: Path) -> None:
    """Have all of the log in the file, as SQLite does by itself each 1000 frames; it is kept as it is.

    The next transaction of who has it open begins it again.
    """
    connection = sqlite3.connect(directory / NAME)
    done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    assert done[0] == 0 and done[1] == done[2]
    connection.close()


def checkpointed(files: Files, directory: Path) -> Files:
    """Return *files* once all of the log is in the file, of a process that is killed then."""
    connection = sqlite3.connect(put(files, directory) / NAME)
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    after = copied(directory)
    connection.close()
    assert after.log == files.log and after.database != files.database
    return after


def put(files: Files, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / NAME).write_bytes(files.database)
    (directory / f"{NAME}-wal").write_bytes(files.log)
    return directory


def found_in(directory: Path) -> dict[int, State]:
    """Return what is found for each step; nothing of it may be called damaged."""
    log = (directory / f"{NAME}-wal").read_bytes()
    with Store(directory) as store:
        found = {step: store.read(step) for step in store.steps()}
        assert store.torn is None or store.torn.read_bytes() == log
    assert all(one.damaged == 0 and one.kept_beside == () for one in found.values())
    assert not list(directory.glob("*.damaged-*"))
    return {step: state_of(one) for step, one in found.items()}


def states_of(model: Model) -> dict[int, State]:
    return {step: model.state(step) for step in model.steps()}


def written(before: Files, after: Files) -> list[int]:
    """Return where in the log the frames begin that were written."""
    assert before.database == after.database and len(before.log) <= len(after.log)
    return [
        start
        for start in range(HEADER, len(after.log), FRAME)
        if before.log[start : start + FRAME] != after.log[start : start + FRAME]
    ]


def after_a_kill(before: Files, after: Files) -> Iterator[Files]:
    """Yield what may be left: each piece is written after those before it, each 4 KB of the file at once."""
    starts = written(before, after)
    pieces = [start + more for start in starts for more in (0, FRAME_HEADER)] + [starts[-1] + FRAME]
    blocks = range(starts[0] // PAGE * PAGE + PAGE, starts[-1] + FRAME, PAGE)
    for cut in sorted({*pieces, *blocks}):
        yield Files(after.database, after.log[:cut] + before.log[cut:])


def after_a_loss_of_power(before: Files, after: Files, chance: random.Random) -> Iterator[Files]:
    """Yield what may be left: any header and any page, each 512 bytes of it at once."""
    starts = written(before, after)
    for missing in starts:
        yield _mixed(before, after, {missing + more for more in range(0, FRAME, 8)})
    for share in (0.03, 0.3, 0.6, 0.9):
        pieces = [[start + more for more in range(0, FRAME_HEADER, 8)] for start in starts]
        pieces += [[start + more for more in range(FRAME_HEADER, FRAME, 8)] for start in starts]
        missing_words = itertools.chain.from_iterable(one for one in pieces if chance.random() < share)
        yield _mixed(before, after, set(missing_words))
        sectors = {
            start // 512 for start in range(starts[0], len(after.log)) if chance.random() < share / 512
        }
        words = range(starts[0], starts[-1] + FRAME, 8)
        yield _mixed(before, after, {word for word in words if word // 512 in sectors})


def _mixed(before: Files, after: Files, missing: set[int]) -> Files:
    """Return *after* without the 8 bytes at each of *missing*: there is what was there *before*."""
    log = bytearray(after.log)
    for word in missing:
        log[word : word + 8] = before.log[word : word + 8].ljust(8, b"\0")
    return Files(after.database, bytes(log))


class Act(NamedTuple):
    """A transaction: the files before and after it, and what has to be found then."""

    files: tuple[Files, Files]
    states: tuple[dict[int, State], dict[int, State]]


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> list[Act]:
    """Return the transactions of a life that goes on from the older step of one that was killed."""
    directory = tmp_path_factory.mktemp("acts")
    model = Model()
    with Store(directory / "killed") as store:
        store.read()
        records = [Committed(0), *plan(model.tell_all([Committed(0)]), 5, 90, largest=300)]
        for batch in in_batches([*records, Committed(90), Committed(91)]):
            store.append(batch)
        model.tell_all([Committed(90), Committed(91)])
        files = copied(directory / "killed")
    some: list[Act] = []
    with Store(put(files, directory / "next")) as store:
        store.read(90)
        states = states_of(model)
        model.resume(90)
        for number, batch in enumerate(in_batches(plan(copy.deepcopy(model), 2, 80, largest=3_000))):
            if number % 5 == 4:
                checkpoint(directory / "next")
            before = copied(directory / "next")
            for act in (partial(store.append, batch), store.compact):
                act()
                model.tell_all(batch if act != store.compact else [])
                after = copied(directory / "next")
                if written(before, after):
                    some.append(Act((before, after), (states, states_of(model))))
                before, states = after, states_of(model)
    return some


def in_batches(records: list[Record]) -> Iterator[list[Record]]:
    for start in range(0, len(records), 5):
        yield records[start : start + 5]


def test_a_log_is_written_over_what_an_earlier_round_left(acts: list[Act]) -> None:
    """So that the others show what they are to show."""
    stale = [
        start for act in acts for start in written(*act.files) if any(act.files[0].log[start : start + FRAME])
    ]
    assert len(stale) > sum(len(written(*act.files)) for act in acts) / 2
    assert max(len(written(*act.files)) for act in acts) > 6


def test_a_kill_between_two_writes_of_sqlite_leaves_what_was_or_what_is(
    acts: list[Act], tmp_path: Path
) -> None:
    for act in acts:
        for files in after_a_kill(*act.files):
            assert found_in(put(files, tmp_path / "torn")) in act.states


def test_a_loss_of_power_leaves_what_was_or_what_is(acts: list[Act], tmp_path: Path) -> None:
    chance = random.Random(1)
    for act in acts:
        for files in after_a_loss_of_power(*act.files, chance):
            assert found_in(put(files, tmp_path / "torn")) in act.states


@pytest.mark.parametrize("seed", range(6))
def test_one_loss_of_power_after_the_other_leaves_what_was_or_what_is(tmp_path: Path, seed: int) -> None:
    """What a torn transaction has left lies behind the next, with the same salts where nothing was before."""
    chance, model = random.Random(seed), Model().tell_all([Committed(0)])
    live = tmp_path / "live"
    with Store(live) as store:
        store.read()
        store.append([Committed(0)])
    for _ in range(25):
        step = chance.choice(model.steps())
        resumed = copy.deepcopy(model)
        resumed.resume(step)
        with Store(live) as store:
            store.read(step)
            before = copied(live)
            for _ in range(chance.randint(0, 3)):  # those are on the disk
                if chance.random() < 0.3:
                    checkpoint(live)
                records = plan(resumed, chance.randrange(10**6), chance.randint(1, 12), largest=6_000)
                store.append(records)
                before, model = copied(live), copy.deepcopy(resumed)
            records = plan(resumed, chance.randrange(10**6), chance.randint(1, 40), largest=6_000)
            store.append(records)
            after = copied(live)
        share = chance.choice((0.02, 0.2, 0.5))
        pieces = [start + more for start in written(before, after) for more in range(0, FRAME, 8)]
        lost = {piece // 512 for piece in pieces if chance.random() < share / 10}
        torn = _mixed(before, after, {piece for piece in pieces if piece // 512 in lost})
        found = found_in(put(torn, live))
        assert found in (states_of(model), states_of(resumed))
        if found == states_of(resumed):
            model = resumed


# ---- what is told apart


@pytest.fixture(scope="module")
def log(acts: list[Act]) -> bytes:
    """Return a log of several transactions, and behind them frames of an earlier round."""
    return acts[-3].files[1].log


def transactions(log: bytes) -> list[range]:
    """Return the frames of each, as SQLite would take them: up to the first that has other salts."""
    sizes = [log[start : start + FRAME_HEADER] for start in range(HEADER, len(log), FRAME)]
    count = next((place for place, head in enumerate(sizes) if head[8:16] != log[16:24]), len(sizes))
    ends = [place + 1 for place in range(count) if sizes[place][4:8] != bytes(4)]
    return [range(begin, end) for begin, end in itertools.pairwise([0, *ends])]


def test_sqlite_and_this_take_the_same_frames(acts: list[Act], tmp_path: Path) -> None:
    for act in acts:
        connection = sqlite3.connect(put(act.files[1], tmp_path / "one") / NAME)
        _, known, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        connection.close()
        found = Wal(act.files[1].log)
        assert not found.has_torn_end
        assert (
            (found.frames, found.is_damaged)
            == (known, False)
            == (transactions(act.files[1].log)[-1].stop, False)
        )


def test_a_flipped_bit_costs_its_frame_and_what_follows_it_is_taken(log: bytes) -> None:
    *some, last = transactions(log)
    assert len(some) > 3
    whole = Wal(log)
    for transaction in some:
        for frame in transaction:
            start = HEADER + FRAME * frame
            for place in (start + 2, start + 21, start + FRAME_HEADER + 1_000):
                spoilt = bytearray(log)
                spoilt[place] ^= 4
                found = Wal(bytes(spoilt))
                assert (found.frames, found.is_damaged) == (last.stop, True), (frame, place - start)
                (page,) = struct.unpack_from(">I", log, start)
                others = {number: image for number, image in found.pages(b"").items() if number != page}
                after = struct.unpack_from(">I", log, start + FRAME)[0] if place == start + 21 else page
                assert all(
                    image == whole.pages(b"")[number] for number, image in others.items() if number != after
                )


SPOIL: dict[str, Callable[[bytearray, int], None]] = {}
"""What is done to a frame that begins at a place, by its name."""


def spoil(function: Callable[[bytearray, int], None]) -> None:
    SPOIL[function.__name__] = function


@spoil
def number(log: bytearray, start: int) -> None:
    log[start + 2] ^= 4


@spoil
def size(log: bytearray, start: int) -> None:
    log[start + 4 : start + 8] = bytes(4)


@spoil
def an_end_too_many(log: bytearray, start: int) -> None:
    log[start + 7] ^= 4


@spoil
def checksum(log: bytearray, start: int) -> None:
    log[start + 21] ^= 4


@spoil
def page(log: bytearray, start: int) -> None:
    log[start + FRAME_HEADER + 1_000] ^= 4


@spoil
def sector(log: bytearray, start: int) -> None:
    place = start // 512 * 512
    log[place : place + 512] = bytes(len(log[place : place + 512]))


@spoil
def all_of_it(log: bytearray, start: int) -> None:
    log[start : start + FRAME] = bytes(FRAME)


@pytest.mark.parametrize("is_in_the_file", [False, True], ids=["in-the-log", "in-the-file-too"])
@pytest.mark.parametrize("what", SPOIL)
def test_what_is_spoilt_in_the_log_is_told_or_kept_and_costs_nothing_that_is_in_the_file(
    acts: list[Act], tmp_path: Path, what: str, is_in_the_file: bool
) -> None:
    files, states = acts[-3].files[1], acts[-3].states[1]
    files = checkpointed(files, tmp_path / "first") if is_in_the_file else files
    *_, before_last, last = transactions(files.log)
    for frame in range(last.stop):
        spoilt = bytearray(files.log)
        SPOIL[what](spoilt, HEADER + FRAME * frame)
        if spoilt == files.log:
            continue
        directory = put(Files(files.database, bytes(spoilt)), tmp_path / "spoilt")
        with Store(directory) as store:
            found = {step: store.read(step) for step in store.steps()}
            is_told = bool(found) and all(one.damaged for one in found.values())
            assert store.torn is None if is_told else store.torn is not None
        kept = NAME + (".damaged-1-wal" if is_told else ".torn-wal")
        assert (directory / kept).read_bytes() == spoilt
        # A frame that is damaged in its header says neither of which page it is, nor whether it is an end.
        knows = what in ("page", "checksum", "an_end_too_many")
        assert is_told or frame in last or (not knows and frame in before_last)
        if is_in_the_file and (knows or is_told):
            assert is_told
            assert {step: state_of(one) for step, one in found.items()} == states


def test_a_torn_transaction_that_changes_no_page_is_not_taken_for_damage(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    store.append([Committed(0)])
    checkpoint(directory)
    for _ in range(2):
        before = copied(directory)
        store.read(0)
        store.append([])  # puts the commit there again, as it is
        after = copied(directory)
        assert written(before, after)
        for files in after_a_kill(before, after):
            found_in(put(files, tmp_path / "torn"))


def test_a_log_with_a_torn_end_is_kept_until_the_next_one_is(acts: list[Act], tmp_path: Path) -> None:
    directory = put(acts[-4].files[1], tmp_path / "torn")
    logs = [list(after_a_kill(*act.files))[-2] for act in acts if len(written(*act.files)) > 2][-2:]
    assert logs[0].log != logs[1].log
    for files in logs:
        (directory / NAME).write_bytes(files.database)
        (directory / f"{NAME}-wal").write_bytes(files.log)
        for is_first in (True, False):
            with Store(directory) as store:
                assert (store.torn is not None) == is_first
            assert [one.read_bytes() for one in directory.glob("*torn*")] == [files.log]


def test_of_a_log_without_a_torn_end_no_copy_is_kept(acts: list[Act], tmp_path: Path) -> None:
    for act in acts:
        with Store(put(act.files[1], tmp_path / "whole")) as store:
            assert store.torn is None
        assert not list((tmp_path / "whole").glob("*torn*"))


def test_once_a_store_is_open_nothing_is_in_its_log(acts: list[Act], tmp_path: Path) -> None:
    """So that damage to the log of one that is killed before it writes costs nothing."""
    with Store(put(acts[-1].files[1], tmp_path / "open")):
        assert (tmp_path / "open" / f"{NAME}-wal").read_bytes() == b""
        database = (tmp_path / "open" / NAME).read_bytes()
    assert found_in(put(Files(database, b""), tmp_path / "killed")) == acts[-1].states[1]


def test_without_its_first_frames_the_round_of_a_log_is_known_from_the_others(log: bytes) -> None:
    size = HEADER + 2 * FRAME
    assert Wal(bytes(size) + log[size:]).frames == transactions(log)[-1].stop


def test_without_its_header_a_round_of_one_frame_is_not_taken_for_the_one_before(acts: list[Act]) -> None:
    before, after = next(
        (one.log, other.log) for (one, other), _ in acts if one.log and one.log[:HEADER] != other.log[:HEADER]
    )
    begun = after[HEADER : HEADER + FRAME] + before[HEADER + FRAME :]
    found = Wal(bytes(HEADER) + begun)
    assert (found.frames, found.has_torn_end, found.pages(b"")) == (0, True, {})
    assert Wal(before[:HEADER] + begun).frames > 2


def test_a_flipped_bit_in_the_last_transaction_is_a_torn_end(log: bytes) -> None:
    *some, last = transactions(log)
    for frame, place in itertools.product(last, (2, 21, FRAME_HEADER + 1_000)):
        spoilt = bytearray(log)
        spoilt[HEADER + FRAME * frame + place] ^= 4
        found = Wal(bytes(spoilt))
        assert (found.frames, found.is_damaged, found.has_torn_end) == (some[-1].stop, False, True)


def test_without_its_header_a_log_is_damaged_and_read(log: bytes) -> None:
    count = transactions(log)[-1].stop
    for size, first in ((20, 0), (32, 1), (512, 2), (4_096, 2), (8_192, 3), (12_288, 4)):
        found = Wal(bytes(size) + log[size:])
        assert (found.frames, found.is_damaged) == (count, True)
        taken = {struct.unpack_from(">I", log, HEADER + FRAME * frame)[0] for frame in range(first, count)}
        assert found.pages(b"").keys() == taken


@pytest.mark.parametrize("size", [0, 1, 31, 32, 56, HEADER + FRAME - 1])
def test_a_log_without_a_frame_is_empty(log: bytes, size: int) -> None:
    found = Wal(log[:size])
    assert (found.frames, found.pages(b""), found.is_damaged, found.has_torn_end) == (0, {}, False, False)


def test_a_header_of_which_a_sector_is_missing_ends_no_transaction(store: Store, directory: Path) -> None:
    """What an earlier round says there of its end, in that sector, is not said of the one that is torn."""
    store.append([Committed(0)])
    before = copied(directory)
    store.append([Queued("0:0", 0, b"d"), Ended("0:0", "accepted", bytes(400_000))])
    after = copied(directory)
    *some, _ = transactions(after.log)
    split = [start for start in written(before, after) if start % 512 > 512 - FRAME_HEADER]
    assert len(split) > 1 and some[-1].stop == Wal(before.log).frames
    for start in split:
        missing = 512 - start % 512
        torn = bytearray(after.log)
        torn[start : start + missing] = struct.pack(">IIII", 2, 7, *struct.unpack(">II", after.log[16:24]))[
            :missing
        ]
        found = Wal(bytes(torn))
        assert (found.frames, found.is_damaged) == (some[-1].stop, False)
