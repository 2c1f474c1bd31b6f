"""What a task awaits, as text: down its coroutines, generators and futures, and on into other tasks.

Only what the interpreter and C types say of themselves is read. No code of the user's runs: no property, no
``__getattr__``, no ``repr``. Any thread may look while the task goes on; what it reads then is a mixture of
two moments, and never an error.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType, FrameType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple

from areal_core._frames import local_of, uncollected
from areal_core._watch.user_frames import short_place


class Note(NamedTuple):
    """What else to say of a frame."""

    lines: Sequence[str]
    is_all: bool = False
    """Whether what is beneath it would only distract."""


Notes = Mapping[CodeType, Callable[[FrameType], Note] | None]
"""What to note of frames, by their code; None: such a frame is not shown."""

LINES = 40
"""The most of one stack."""

_OUTERMOST = 12  # of the lines that are kept of a longer one
_STEPS = 2_000  # a chain may be endless, and is looked at while the loop waits
_BRANCHES = 3  # of a gather or a TaskGroup
_DEPTH = 4  # of branches in branches
_INDENT = "  "

# In 3.11 what tasks and futures are written in may be C or Python, side by side.
_FUTURES: tuple[Any, ...] = (asyncio.Future, getattr(asyncio.futures, "_PyFuture", asyncio.Future))
_TASKS: tuple[Any, ...] = (asyncio.Task, getattr(asyncio.tasks, "_PyTask", asyncio.Task))
# Not get_coro(): in Python 3.12.1 that crashes for a task that has ended in its first step, which another
# thread learns too late. None: tasks are written in Python.
_coro: Any = vars(asyncio.Task).get("_coro")
_GATHERING: Any = getattr(asyncio.tasks, "_GatheringFuture", None)
_C_ATTRIBUTES = (GetSetDescriptorType, MemberDescriptorType)
_SILENT = {
    "FutureIter",
    "anext_awaitable",
    "async_generator_asend",
    "async_generator_athrow",
    "coroutine_wrapper",
}
"""C types that stand between one awaitable and the next, and of which there is nothing to say."""


def stack_of(task: object, notes: Notes) -> str:
    """Return a line for each frame of *task* and of what it awaits, the innermost last."""
    walk = _Walk(notes)
    try:
        walk.follow(_coroutine_of(task), 0)
    except Exception as error:  # of types that nobody has thought of: what was found is worth having
        walk.lines.append(f"(the rest cannot be told: {type(error).__qualname__})")
    return "\n".join(_shortened(walk.lines))


class _Found(NamedTuple):
    """Something with a frame: a coroutine, a generator, an async generator, of Python or of Cython."""

    frame: Any
    awaits: Any
    is_running: bool


class _Walk:
    def __init__(self, notes: Notes) -> None:
        self.lines: list[str] = []
        self._notes = notes
        self._seen: dict[int, object] = {}  # kept, or another object might get the id of one

    def follow(self, awaited: Any, depth: int) -> None:
        while awaited is not None and len(self._seen) < _STEPS:
            if id(awaited) in self._seen:
                self._say(depth, "(in a circle)" if depth == 0 else "(as above)")
                return
            self._seen[id(awaited)] = awaited
            awaited = self._step(awaited, depth)

    def _step(self, awaited: Any, depth: int) -> Any:
        """Say what *awaited* is; return what it awaits in turn, None at the end."""
        if issubclass(type(awaited), _FUTURES):
            return self._pass_future(awaited, depth)
        found = _found(awaited)
        if found is None:
            return self._pass_other(awaited, depth)
        if found.frame is not None and self._say_frame(found.frame, depth):
            return None
        if found.is_running and found.awaits is None:
            self._say(depth, "(it is running at this moment)")
        return found.awaits

    def _pass_future(self, future: Any, depth: int) -> Any:
        if _ask(_FUTURES, future, "done"):
            self._say(depth, "(which is done: the task goes on in a moment)")
            return None
        if issubclass(type(future), _TASKS):
            self._say(depth, "in a task of its own:")
            return _coroutine_of(future)
        if type(future) is _GATHERING and self._branch(getattr(future, "_children", ()), depth):
            return None
        shielded = _shielded(future)
        if shielded is None:
            self._say(depth, f"a future that is not done ({_name(type(future))})")
        return shielded

    def _pass_other(self, awaited: Any, depth: int) -> Any:
        kind = type(awaited)
        if kind.__name__ not in _SILENT:
            self._say(depth, f"an awaitable of {_name(kind)}")
        return _only(one for one in _inside(awaited) if id(one) not in self._seen)

    def _say_frame(self, frame: FrameType, depth: int) -> bool:
        """Say where *frame* is, and what asyncio itself waits for there; return whether that is all."""
        make_note = self._notes.get(frame.f_code, _nothing)
        if make_note is None:
            return False
        self._say(depth, short_place(frame))
        note = make_note(frame)
        for line in note.lines:
            self._say(depth, line)
        return note.is_all or self._branch(_children_in(frame), depth)

    def _branch(self, children: Iterable[Any], depth: int) -> bool:
        """Follow those of *children* that are not done; return whether there are any."""
        waits = [
            one for one in children if issubclass(type(one), _FUTURES) and not _ask(_FUTURES, one, "done")
        ]
        if not waits or depth >= _DEPTH:
            return False
        for child in waits[:_BRANCHES]:
            self.follow(child, depth + 1)
        if len(waits) > _BRANCHES:
            self._say(depth + 1, f"and {len(waits) - _BRANCHES} more beside them")
        return True

    def _say(self, depth: int, line: str) -> None:
        self.lines.append(_INDENT * depth + line)


def _nothing(_: FrameType) -> Note:
    return Note(())


def _coroutine_of(task: object) -> Any:
    if _coro is not None and issubclass(type(task), asyncio.Task):
        return _coro.__get__(task)
    return _ask(_TASKS, task, "get_coro") if issubclass(type(task), _TASKS) else None


def _ask(kinds: tuple[Any, ...], one: Any, method: str) -> Any:
    """Call the *method* that asyncio wrote, whatever a class of the user's made of it."""
    return next(getattr(kind, method)(one) for kind in kinds if issubclass(type(one), kind))


def _found(awaited: Any) -> _Found | None:
    for prefix, follows in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
        if _has(awaited, f"{prefix}_frame"):
            return _Found(
                _get(awaited, f"{prefix}_frame"),
                _get(awaited, f"{prefix}_{follows}"),
                bool(_get(awaited, f"{prefix}_running")),
            )
    return None


def _has(one: Any, name: str) -> bool:
    return _descriptor(one, name) is not None


def _get(one: Any, name: str) -> Any:
    found = _descriptor(one, name)
    return None if found is None else uncollected(found.__get__, one)


def _descriptor(one: Any, name: str) -> Any:
    for cls in type(one).__mro__:
        found = vars(cls).get(name)
        if found is not None:
            return found if type(found) in _C_ATTRIBUTES else None
    return None


def _inside(one: Any) -> list[Any]:
    """Return the awaitables that *one* refers to; of a C type nothing else tells what it waits for."""
    refers_to: list[Any] = []
    for other in gc.get_referents(one):
        refers_to.extend(other.values() if type(other) is dict else [other])
    return [other for other in refers_to if _leads_on(other)]


def _leads_on(one: Any) -> bool:
    kind = type(one)
    return issubclass(kind, _FUTURES) or kind.__name__ in _SILENT or _found(one) is not None


def _only(candidates: Iterable[Any]) -> Any:
    """Return the one there is; None where there are several, of which one would be guessed."""
    unique = list({id(one): one for one in candidates}.values())
    return unique[0] if len(unique) == 1 else None


def _children_in(frame: FrameType) -> list[Any]:
    """Return the tasks that a function of asyncio waits for, though it awaits a future of its own."""
    name = _LOCALS.get(frame.f_code)
    if name is None:
        return []
    value = local_of(frame, name)
    if issubclass(type(value), asyncio.TaskGroup):
        value = getattr(value, "_tasks", ())
    return list(value) if type(value) in (set, list, tuple, frozenset) else [value]


def _code_of(owner: Any, name: str) -> list[CodeType]:
    code = getattr(getattr(owner, name, None), "__code__", None)
    return [code] if isinstance(code, CodeType) else []


_LOCALS: dict[CodeType, str] = {
    code: local
    for owner, name, local in (
        (asyncio.TaskGroup, "__aexit__", "self"),
        (asyncio.TaskGroup, "_aexit", "self"),
        (asyncio.tasks, "_wait", "fs"),
        (asyncio.tasks, "wait_for", "fut"),
    )
    for code in _code_of(owner, name)
}


def _shielded(future: Any) -> Any:
    """Return what the future that `asyncio.shield` made stands for."""
    for callback, _ in _get(future, "_callbacks") or ():
        code = getattr(callback, "__code__", None) if type(callback) is type(_shielded) else None
        if code is not None and code.co_qualname == "shield.<locals>._outer_done_callback":
            return dict(zip(code.co_freevars, callback.__closure__, strict=True))["inner"].cell_contents
    return None


def _name(kind: type) -> str:
    module = kind.__module__
    return f"{module}.{kind.__qualname__}" if type(module) is str else kind.__qualname__


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= LINES:
        return lines
    innermost = LINES - _OUTERMOST - 1
    left_out = len(lines) - _OUTERMOST - innermost
    return [*lines[:_OUTERMOST], f"... {left_out} lines ...", *lines[-innermost:]]
