"""Notes which lines of the library a process reaches: every Python started with this on its path does so.

Lines are written one by one, so that those of a process that is killed are known too. Forks go on with it.
Needs Python 3.12: `sys.monitoring` sees all threads, and gets on with whoever traces.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # a process under test may have to do without `typing`
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

FILE = "AREAL_CORE_REACHED"
"""The environment variable with the file that is written to."""

PROCESS = "a process"
"""The line with which each process begins."""

IMPORT = "import "
"""How a line begins that was reached as a module or a class was made."""

_TOOL = 3
_PACKAGE = "/areal_core/"
_CO_OPTIMIZED = 1
_descriptor = -1


def begin(path: str) -> None:
    """Note from now on what is reached, in the file *path*; what others know already, too."""
    global _descriptor
    before, _descriptor = _descriptor, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.environ[FILE] = path
    if before >= 0:
        os.close(before)
        _monitoring().restart_events()
        return
    os.write(_descriptor, f"{PROCESS}\n".encode())
    monitoring = _monitoring()
    monitoring.use_tool_id(_TOOL, "reached")
    monitoring.register_callback(_TOOL, monitoring.events.LINE, _note)
    monitoring.set_events(_TOOL, monitoring.events.LINE)


def _note(code: CodeType, line: int) -> Any:
    _, found, file = code.co_filename.rpartition(_PACKAGE)
    if found:
        how = "" if code.co_flags & _CO_OPTIMIZED else IMPORT
        os.write(_descriptor, f"{how}areal_core/{file}:{line}\n".encode())
    return _monitoring().DISABLE


def _monitoring() -> Any:
    return sys.monitoring  # type: ignore[attr-defined]


if FILE in os.environ:
    begin(os.environ[FILE])
