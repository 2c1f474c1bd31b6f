"""Weights: which version makes the tokens, under which label, and the file it comes from."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

DEFAULT_LABEL = "default"
"""What servers call the weights that nobody has named."""


class WeightsError(Exception):
    """A file has no weights for this server: the file, and why."""


@dataclass(frozen=True, eq=False)
class Weights:
    """What a server generates with at one time; a new object whenever version or label changes."""

    version: int
    label: str = DEFAULT_LABEL
    content: Any = None
    """What the model made of the file; None where the version is all there is."""

    def labelled(self, label: str | None) -> Weights:
        """Return the same weights under another label; None keeps it."""
        return self if label is None else replace(self, label=label)


@dataclass(frozen=True)
class Span:
    """The tokens from *start* to before *end* were made with *weights*."""

    weights: Weights
    start: int
    end: int


def write_weights(path: str | os.PathLike[str], version: int) -> None:
    """Write a file of weights for the modes "text" and "test", where the version is all they are.

    A server that reads *path* meanwhile finds the old file or the new one, and never half of one.
    """
    if version < 0:
        raise ValueError(f"version={version} is not a whole number from 0 up")
    text = json.dumps({"version": version})
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Give a file to write in the block, which takes the place of *path* at its end, or never was."""
    target = Path(path)
    descriptor, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(draft).replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(draft).unlink()
        raise


def read_version(path: str) -> int:
    """Return the version in a file that `write_weights` wrote. Raises WeightsError."""
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read the weights {path!r}: {getattr(error, 'strerror', error)}") from None
    try:
        version = json.loads(text)["version"]
    except (ValueError, RecursionError, LookupError, TypeError):
        version = None
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise WeightsError(f'the weights {path!r} are not JSON such as {{"version": 3}}; see write_weights()')
    return version
