"""Look at runs from outside: ``python -m areal_core.top [PID | PATH]``.

A run with ``status_file`` in its configuration writes down once a second how things stand. This shows it, in
a terminal and until you quit, or once, as plain text, with ``--once``; whether the run lives, hangs, has
ended or was killed. It asks nothing of the run itself.

The view needs the extra ``top`` (``pip install 'areal-core[top]'``); ``--once`` does not.
"""

from __future__ import annotations

from areal_core.top._command import main

__all__ = ["main"]
