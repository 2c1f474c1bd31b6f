"""Ctrl-C in the main thread: raised in the library and in what the trainer does, never in its books."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import areal_core
from areal_core.embedded import write_weights

_LIBRARY = str(Path(areal_core.__file__).parent)
_BOOKS = [str(Path(__file__).with_name(f"_soak_{name}.py")) for name in ("books", "log", "tokens")]
_SPARED = frozenset({*_BOOKS, write_weights.__code__.co_filename})
"""Files in which none is raised: the books, and what stands for writing a checkpoint, of which Python itself
leaves a file open when it is interrupted in opening it."""


class Gate:
    """Decides which signals become a KeyboardInterrupt.

    Whatever raises in the library may be interrupted once more on its way out. The program around it may be
    interrupted once for each `play`: no program survives a Ctrl-C in the middle of its handling of one.
    """

    def __init__(self) -> None:
        self._is_open = False
        self.is_shut = True
        """Whether none is raised, wherever it comes."""
        self.raised = 0
        self.in_library = 0
        """How many of those were raised in the library."""
        self.ignored = 0

    def install(self) -> None:
        """Take every SIGINT from now on."""
        signal.signal(signal.SIGINT, self._on_signal)

    def play(self, act: Callable[[], object]) -> bool:
        """Call *act*; return whether it was not interrupted."""
        try:
            self._is_open = True
            act()
            self._is_open = False
        except KeyboardInterrupt:
            return False
        finally:
            self._is_open = False
        return True

    def insist(self, act: Callable[[], object]) -> None:
        """Call *act* again and again until it is not interrupted."""
        while not self.play(act):
            pass

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        files = list(_files(frame))
        in_library = any(file.startswith(_LIBRARY) for file in files)
        if self.is_shut or any(file in _SPARED for file in files) or not (in_library or self._is_open):
            self.ignored += 1
            return
        self._is_open = False
        self.raised += 1
        self.in_library += in_library
        raise KeyboardInterrupt


def _files(frame: FrameType | None) -> list[str]:
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return files
