"""What an offloaded call is doing where its coroutine cannot show it: in a thread, or in a worker process."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from areal_core import offload
from areal_core._frames import frames_of_threads, local_of, with_callers
from areal_core._offload.crew import Crew
from areal_core._watch.awaited import Note
from areal_core._watch.user_frames import short_place


def _on_loop(frame: FrameType) -> Note:
    return Note([f"in {_name_in(frame)}, on the loop"])


def _in_thread(frame: FrameType) -> Note:
    found = _frames_that_make(local_of(frame, "call"))
    if not found:
        return Note([f"in {_name_in(frame)}, which waits its turn for a thread"])
    places = [f"  {short_place(one)}" for one in found]
    return Note([f"in {_name_in(frame)}, in a thread, which is at", *places], is_all=True)


def _in_process(frame: FrameType) -> Note:
    return Note([f"in {_name_in(frame)}, in a worker process"])


def _at_worker(frame: FrameType) -> Note:
    worker = local_of(frame, "worker")
    if worker is None:
        return Note(["which waits its turn"])
    process = getattr(worker, "_process", None)
    if process is None:
        return Note(["which is being started"])
    return Note([f"with the process id {process.pid}"], is_all=True)


NOTES: dict[CodeType, Callable[[FrameType], Note]] = {
    offload._on_loop.__code__: _on_loop,
    offload._in_thread.__code__: _in_thread,
    offload._in_process.__code__: _in_process,
    Crew.in_process.__code__: _at_worker,
}
"""What to say of the frames in which a call is awaited."""


def _name_in(frame: FrameType) -> str:
    what = local_of(frame, "what")
    return str(getattr(what, "name", "a function"))


def _frames_that_make(call: Any) -> list[FrameType]:
    """Return where the thread is that makes *call*, outermost first; [] where none does."""
    if call is None:
        return []
    for innermost in frames_of_threads().values():
        above: list[FrameType] = []
        for frame in with_callers(innermost):
            if frame.f_code is offload._called_in_thread.__code__:
                if local_of(frame, "call") is call:
                    return above[::-1]
                break
            if frame.f_code is not offload._called.__code__:
                above.append(frame)
    return []
