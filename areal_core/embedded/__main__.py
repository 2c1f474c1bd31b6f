"""The command ``python -m areal_core.embedded``."""

from __future__ import annotations

import socket
import sys

from areal_core.embedded._models.weights import WeightsError
from areal_core.embedded._options import ServerOptions, parse
from areal_core.embedded._signals import StopSignals


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments *argv* (None: this process's); return its exit status."""
    signals = StopSignals()
    options, parent = parse(argv)
    try:
        listener = _listen(options)
    except (OSError, UnicodeError) as error:
        print(f"cannot listen on {options.host}, port {options.port}: {error}", file=sys.stderr)
        return 1
    from areal_core.embedded._serve import UnheardError, run  # aiohttp: only now, when the address is ours

    try:
        run(options, listener, signals, parent)
    except (WeightsError, ModuleNotFoundError) as error:
        print(f"cannot generate: {error}", file=sys.stderr)
        return 1
    except UnheardError as error:
        print(f"cannot say where it listens: {error}", file=sys.stderr)
        return 1
    signals.ignore()
    return 0


def _listen(options: ServerOptions) -> socket.socket:
    """Return a socket bound to the first address the host has; port 0 would differ from one to the next."""
    found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family)


if __name__ == "__main__":
    sys.exit(main())
