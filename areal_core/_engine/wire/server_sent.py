"""Server-sent events (``text/event-stream``), read as the HTML standard says. Pure."""

from __future__ import annotations

from areal_core._engine.backend import ReplyError

_LINE_ENDS = b"\r\n"
_MARK = b"\xef\xbb\xbf"  # the byte order mark a stream may begin with
_FIELD = len(_MARK) + len(b"data: ")  # what may come before the data in its line


class EventParser:
    """Takes a stream as it comes in, cut anywhere, and gives the data of its events.

    Names, ids and comments are left out. An event that was not ended by an empty line was cut off: it is
    never given. *most_bytes* bounds the data of an event, and with it the memory.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._data = bytearray()  # of the event so far, a line feed after each line
        self._line = bytearray()  # the beginning of a line whose end has not come yet
        self._ended_in_return = False  # a line feed that follows belongs to it
        self._begun = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take what came in and return the data of each event it ends. Raises ReplyError for a huge one."""
        if self._ended_in_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._ended_in_return = False
        if not chunk:
            return []
        lines = chunk.splitlines()
        whole = chunk[-1] in _LINE_ENDS
        rest = b"" if whole else lines.pop()
        self._ended_in_return = chunk.endswith(b"\r")
        events = self._read(lines)
        self._line += rest
        self._check(len(self._line) - _FIELD)
        return events

    def _read(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in map(self._completed, lines):
            if line:
                self._take(line)
            elif self._data:
                events.append(bytes(self._data[:-1]))
                self._data.clear()
        return events

    def _completed(self, line: bytes) -> bytes:
        if self._line:
            line = bytes(self._line) + line
            self._line = bytearray()
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_MARK)
        return line

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value.removeprefix(b" ")
            self._check(len(value))
            self._data += value
            self._data += b"\n"

    def _check(self, more: int) -> None:
        if len(self._data) + more > self._most_bytes:
            raise ReplyError(f"an event of the stream has more than {self._most_bytes} bytes")
