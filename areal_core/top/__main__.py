"""The command ``python -m areal_core.top``."""

from __future__ import annotations

import sys

from areal_core.top._command import main

if __name__ == "__main__":
    sys.exit(main())
