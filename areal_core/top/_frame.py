"""One frame of a run as plain text."""

from __future__ import annotations

from areal_core._observe.runs import Run
from areal_core.top._panels import PANELS, banner, head
from areal_core.top._text import plain, shown

_MOST_ROWS = 1000
_ASCII = str.maketrans("█▓▒░▏▎▍▌▋▊▉▁▂▃▄▅▆▇…·─", "#%=-|||||||_.:-=+*~.-")


def frame(run: Run, columns: int, encoding: str = "utf-8") -> str:
    """Return all there is to see of *run*, in *columns*, in characters that *encoding* has."""
    said = banner(run, columns)
    lines = [plain(head(run, columns)), *([] if said is None else [plain(said)])]
    for title, panel in PANELS.values():
        lines += ["", f"── {title} ".ljust(columns, "─")]
        lines += [plain(line) for line in panel(run, columns, _MOST_ROWS)]
    return _encodable("\n".join(lines), encoding)


def entry(run: Run, columns: int, encoding: str = "utf-8") -> str:
    """Return what a list of runs says of *run*: how it is doing, and its file."""
    return _encodable(f"{plain(head(run, columns))}\n    {shown(str(run.path))}", encoding)


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return text.translate(_ASCII).encode("ascii", "replace").decode()
    return text
