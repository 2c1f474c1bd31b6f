"""Run one measurement in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

T = TypeVar("T")

TIMEOUT_S = 300.0

# Forked, not spawned: 400 measurements would spend minutes on imports. The parent has imported
# everything and runs no thread and no loop, so the child begins as a fresh interpreter would.
_context = multiprocessing.get_context("fork")


class MeasurementError(Exception):
    """The child raised, died or did not end; the text is its traceback or says so."""


def in_child(measure: Callable[[], T]) -> T:
    """Return what *measure* returns in a forked child. Raises MeasurementError."""
    receiver, sender = _context.Pipe(duplex=False)
    child = _context.Process(target=_report, args=(measure, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT_S):
            raise MeasurementError(f"no result within {TIMEOUT_S} s")
        succeeded, result = receiver.recv()
    except EOFError:
        raise MeasurementError("the child died without a word") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if not succeeded:
        raise MeasurementError(result)
    return cast(T, result)


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[BaseProcess]:
    """Do *work* in a forked child for the block, at whose end it is killed."""
    child = _context.Process(target=work, daemon=True)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def _report(measure: Callable[[], Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the parent alone has something to say
    try:
        sender.send((True, measure()))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    os._exit(0)  # 100 000 tasks are still in flight; clearing them up measures nothing
