"""Processes killed in the middle of writing a journal, and what the next one finds."""

from __future__ import annotations

import copy
import random
import shutil
import signal
from pathlib import Path

import pytest

from areal_core._journal.crash_points import NAMES
from areal_core._journal.records import Committed, Record
from areal_core._journal.store import Store
from children import StartScript
from journal_plans import Model, plan, save, state_of

CHILD = """
import os, signal, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from journal_plans import load
from areal_core._journal import crash_points
from areal_core._journal.store import Store
from areal_core._journal.writer import Writer

directory, records, step, point, times, every = sys.argv[2:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(name):
    global left
    if name == point:
        left -= 1
        if not left:
            die()

def tell(number):
    os.write(1, b"%d\\n" % number)

left = int(times)
planned = load(Path(records))
store = Store(directory)
store.open()
store.read(int(step) if step else None)
writer = Writer(store)
if point == "timer":
    threading.Timer(left / 1e6, die).start()
crash_points.hook = hook
for number, record in enumerate(planned, 1):
    writer.put(record)
    if number % int(every) == 0:
        writer.flush()
        tell(number)
writer.flush()
tell(len(planned))
writer.close()
die()
"""

POINTS = [name for name in NAMES if name != "after_delivery"]  # which is the executor's


def live_and_die(
    start_script: StartScript,
    directory: Path,
    records: list[Record],
    step: int | None,
    *death: object,
) -> int:
    """Have a child write *records* and be killed; return how many it said are durable."""
    path = directory.with_suffix(".json")
    save(records, path)
    words = [
        str(Path(__file__).parent),
        str(directory),
        str(path),
        "" if step is None else str(step),
        *map(str, death),
    ]
    child = start_script(CHILD, *words, flags=())
    stdout, stderr = child.communicate(timeout=40)
    assert (child.returncode, stderr) == (-signal.SIGKILL, "")
    return int(stdout.split()[-1]) if stdout else 0


def check(directory: Path, before: Model, records: list[Record], durable: int, step: int) -> Model:
    """Assert that the journal says what it would of some of *records*, *durable* at least; return which."""
    with Store(directory) as store:
        found = {one: store.read(one) for one in store.steps()}
    assert all(one.damaged == 0 for one in found.values())
    model = before
    model.resume(step)
    model.tell_all(records[:durable])
    for record in [*records[durable:], None]:
        if model.steps() == list(found) and all(
            model.state(one) == state_of(recovered) for one, recovered in found.items()
        ):
            return model
        if record is not None:
            model.tell(record)
    raise AssertionError(f"what is found in {directory} is no state after {durable} records or more")


def lives(start_script: StartScript, directory: Path, seed: int, deaths: list[tuple[object, ...]]) -> None:
    """Kill one process after the other; each goes on where the file says that the one before was."""
    with Store(directory) as store:
        store.read()
        store.append([Committed(0)])
    model, chance = Model().tell_all([Committed(0)]), random.Random(seed)
    for number, death in enumerate(deaths):
        step = chance.choice(model.steps())
        planner = copy.deepcopy(model)
        planner.resume(step)
        records = plan(planner, 1_000 * seed + number, 150)
        durable = live_and_die(start_script, directory, records, step, *death)
        if durable == 0 and not_begun(directory, model):
            continue
        model = check(directory, model, records, durable, step)


def not_begun(directory: Path, model: Model) -> bool:
    """Return whether the journal is as before: who resumed an older step has written nothing yet."""
    with Store(directory) as store:
        return store.steps() == model.steps() and all(
            state_of(store.read(step)) == model.state(step) for step in store.steps()
        )


@pytest.mark.any_loop
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_nothing_durable_and_makes_nothing_up(
    start_script: StartScript, tmp_path: Path, point: str
) -> None:
    chance = random.Random(point)
    deaths: list[tuple[object, ...]] = [
        (point, chance.choice((1, 2, 3, 7)), chance.choice((1, 5, 40))) for _ in range(4)
    ]
    lives(start_script, tmp_path / "journal", len(point), deaths)


@pytest.mark.any_loop
@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_loses_nothing_durable_and_makes_nothing_up(
    start_script: StartScript, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    deaths: list[tuple[object, ...]] = [
        ("timer", chance.randrange(1, 60_000), chance.choice((1, 5, 40))) for _ in range(5)
    ]
    lives(start_script, tmp_path / "journal", seed, deaths)


@pytest.mark.any_loop
@pytest.mark.parametrize("suffix", ["", "-wal"], ids=["file", "log"])
@pytest.mark.parametrize(
    ("at", "calls"),
    [
        ("rename", 2),
        ("replace", 1),
        ("unlink", 3),
        ("sync_directory", 3),
        ("keep", 1),
        ("connect", 1),
        ("insert", 3),
    ],
)
def test_a_kill_while_a_file_is_salvaged_loses_nothing_and_leaves_one_copy(
    start_script: StartScript, tmp_path: Path, at: str, calls: int, suffix: str
) -> None:
    model = Model().tell_all([Committed(0)])
    records: list[Record] = [Committed(0), *plan(model, 9, 100)]
    with Store(tmp_path / "live") as store:
        store.read()
        for record in records:
            store.append([record])
        shutil.copytree(tmp_path / "live", tmp_path / "damaged-log")
    damaged = tmp_path / ("damaged-log" if suffix else "live")  # which is closed, and has no log any more
    path = damaged / f"journal.sqlite{suffix}"
    path.write_bytes(b"overwritten" + path.read_bytes()[11:])
    for call in range(1, calls + 1):
        directory = tmp_path / f"killed-at-{call}"
        shutil.copytree(damaged, directory)
        for attempt in range(2 if call == 1 else 1):
            kill_in_salvage(start_script, directory, at, call, must_hit=attempt == 0)
        with Store(directory) as store:
            assert store.steps() == model.steps()
            for step in store.steps():
                assert state_of(store.read(step)) == model.state(step)
        copies = {f"journal.sqlite.damaged-1{one}" for one in ({"", suffix})}
        assert {one.name for one in directory.glob("*.damaged-*")} == copies


def kill_in_salvage(
    start_script: StartScript, directory: Path, at: str, call: int, *, must_hit: bool
) -> None:
    """Kill a process that opens *directory* before it calls what *at* says the *call*-th time."""
    child = start_script(
        """
        import os, signal, sys
        from pathlib import Path
        from areal_core._journal import salvage
        from areal_core._journal.store import Store

        directory, at, call = sys.argv[1:]
        left = int(call)

        def before(function):
            def die_or_go_on(*arguments, **options):
                global left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return die_or_go_on

        owner = Path if at in ("rename", "replace", "unlink") else salvage
        setattr(owner, at, before(getattr(owner, at)))
        Store(directory).open()
        print("opened", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(directory),
        at,
        str(call),
        flags=(),
    )
    stdout, stderr = child.communicate(timeout=40)
    assert (child.returncode, stderr) == (-signal.SIGKILL, "")
    assert stdout == "" or not must_hit
