"""Look at runs from outside: ``python -m areal_core.top [PID | PATH]``.

A run with ``status_file`` in its configuration writes down once a second how things stand. This shows it, in
a terminal and until you quit, or once, as plain text, with ``--once``; whether the run lives, hangs, has
ended or was killed. It asks nothing of the run itself.

Where several runs live, it lists them: the view to choose one from, ``--once`` as text, with the files.

Where input or output is no terminal, it does what ``--once`` does. Its exit status then is 0 for a run that
lives or has ended as it should, 3 for one that has died (its process is gone without a word), 4 for one that
is silent (its process is there, and has said nothing for ten seconds), 1 where there is nothing to see; of
a list, the greatest of its runs.

The view needs the extra ``top`` (``pip install 'areal-core[top]'``); ``--once`` does not.
"""

from __future__ import annotations

from areal_core.top._command import main

__all__ = ["main"]
