"""Which runs there are, and which of them live: status files, found and read.

A file says which process wrote it: its host, its id, and when that began, since ids are used again. The
last word of a process that was killed stays where it is.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from areal_core._engine.speeds import Speed
from areal_core._executor.snapshot import Snapshot
from areal_core._observe.lately import Held

SCHEMA = 1
"""Of a status file. One that is greater may mean what this version does not know."""

EVERY_S = 1.0
"""How often a run writes its file."""

_SILENT_S = 10.0  # a run that lives and is not stopped does not take so long
_DEAD_S = 60.0  # where nobody can tell whether the process lives
_KEPT_S = 7 * 86400.0
_MOST_BYTES = 16 * 2**20
_FOLDER = "areal_core"
_OWN = re.compile(r"[^.].*-\d+-\d+\.json")
_UNFINISHED = re.compile(r"\..+\.json\.\d+-\d+\.new")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a status file says."""

    schema: int = SCHEMA
    host: str
    process_start: str | None
    """What tells the process from others that had its id, before it or after; None: nothing does."""
    tokens_per_s: float | None
    accepted_per_s: float | None
    tokens_history: tuple[float, ...]
    """Tokens per second, for each of the last seconds, the newest last."""
    left_s: tuple[float | None, ...]
    """In how many seconds each of the snapshot's waits has all; None: nobody knows."""
    servers: dict[str, Speed] = {}
    """How fast the servers are, by name; one that came a moment ago is not there."""
    trainer_busy_s: float | None = None
    """For how long the trainer has asked for nothing; 0: it waits. None: it never has asked."""
    trainer_waits: float | None = None
    """The share of the last ten minutes in which it waited; None: it never has asked."""
    held: Held | None = None
    """What held rollouts up in the last ten seconds; None: what wrote the file does not say."""
    snapshot: Snapshot


class State(StrEnum):
    """What became of a run."""

    LIVE = "live"
    SILENT = "silent"
    """Its process lives, and says nothing."""
    ENDED = "ended"
    """It was destroyed, or its program came to an end."""
    DIED = "died"
    """Its process is gone, and has not said good-bye."""


class Run(NamedTuple):
    """A status file, as it was read."""

    path: Path
    status: Status
    state: State

    @property
    def is_live(self) -> bool:
        """Whether its process is there."""
        return self.state in (State.LIVE, State.SILENT)


def read_run(path: Path) -> Run:
    """Read a status file. Raises OSError, and ValueError for what is none or is a later version's."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES)
    head = msgspec.json.decode(data, type=_Head)
    if head.schema > SCHEMA:
        raise ValueError(f"schema {head.schema} is later than {SCHEMA}; use the areal_core that wrote it")
    status = msgspec.json.decode(data, type=Status)
    return Run(path, status, state_of(status))


class _Head(msgspec.Struct, frozen=True):
    schema: int


def find_runs(directories: Iterable[Path] | None = None) -> list[Run]:
    """Return the runs of this user in *directories* (None: where runs put their files), newest first."""
    found = []
    for directory in runtime_directories() if directories is None else directories:
        for path in _files(directory):
            try:
                found.append(read_run(path))
            except (OSError, ValueError):  # removed meanwhile, or not a run's
                continue
    return sorted(found, key=lambda run: _began(run.status), reverse=True)


def _began(status: Status) -> float:
    return status.snapshot.taken_at - status.snapshot.uptime_s


def state_of(status: Status) -> State:
    """Return what became of the run that wrote *status*."""
    seen = status.snapshot
    if seen.has_ended:
        return State.ENDED
    age_s = time.time() - seen.taken_at
    if status.host == this_host() and status.process_start is not None:
        if process_start(seen.pid) != status.process_start:
            return State.DIED
        return State.LIVE if age_s < _SILENT_S else State.SILENT
    if age_s < _SILENT_S:
        return State.LIVE
    return State.SILENT if age_s < _DEAD_S else State.DIED


def this_host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def process_start(pid: int) -> str | None:
    """Return what tells the process *pid* from others of that id; None: there is none, or no ``/proc``."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program is in brackets, and may have any character in it, or half of one.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


# -- where -----------------------------------------------------------------------------------------


def runtime_directories() -> list[Path]:
    """Return where status files of this user may be, the best place first. Not all of them exist."""
    places = [
        Path(runtime) / _FOLDER if (runtime := os.environ.get("XDG_RUNTIME_DIR")) else None,
        Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / _FOLDER,
        Path(tempfile.gettempdir()) / f"{_FOLDER}-{os.getuid()}",
    ]
    found: dict[str, Path] = {}
    for place in places:
        if place is not None and place.is_absolute():
            found.setdefault(os.path.realpath(place), place)
    return list(found.values())


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user whom the system does not know
        return Path()


def own_directory() -> Path:
    """Return the first of `runtime_directories` that can be had, made if need be. Raises OSError."""
    refusals = []
    for directory in runtime_directories():
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            _check_ours(directory)
        except OSError as error:
            refusals.append(str(error))
        else:
            return directory
    raise OSError(f"no directory for status files: {'; '.join(refusals)}; give status_file a path")


def _check_ours(directory: Path) -> None:
    """Raise OSError unless nobody else can put anything into *directory*."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{directory} is not a directory that this user alone can write to")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory} cannot be written to")


def file_name(program: str, pid: int, number: int) -> str:
    """Return what the file of a run is called: of its *program* what goes well into a name."""
    plain = re.sub(r"[^\w.-]+", "_", program, flags=re.ASCII).strip("._-")[:40]
    return f"{plain or 'python'}-{pid}-{number}.json"


def unfinished(path: Path, number: int) -> Path:
    """Return where the file of a run is until it has been written, for *path* to be replaced then."""
    return path.with_name(f".{path.name}.{os.getpid()}-{number}.new")


def remove_old(directory: Path) -> None:
    """Remove from *directory* the files of runs that are over, or unreadable, for a week."""
    for path in [*_files(directory), *_files(directory, _UNFINISHED)]:
        try:
            if time.time() - path.stat().st_mtime > _KEPT_S and not _lives(path):
                path.unlink()
        except OSError:  # another run was faster
            continue


def _lives(path: Path) -> bool:
    try:
        return read_run(path).is_live
    except ValueError:
        return False


def _files(directory: Path, names: re.Pattern[str] = _OWN) -> list[Path]:
    try:
        _check_ours(directory)
        return sorted(path for path in directory.iterdir() if names.fullmatch(path.name))
    except OSError:
        return []
