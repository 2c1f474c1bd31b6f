"""The server of the HTTP rows, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def answering_server() -> Iterator[str]:
    """Run the server that answers at once, and give its URL, with a slash at the end."""
    command = [sys.executable, str(Path(__file__).with_name("_answering_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/"
        server.stdin.close()
