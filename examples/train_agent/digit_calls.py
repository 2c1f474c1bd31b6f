"""How the policy writes a call of the agent's tool: ``_413`` is ``check(answer="413")``."""

from __future__ import annotations

import json
import re

_CALL = re.compile("_([0-9]+)")


class DigitCalls:
    """What `ChatFormat` is told of the policy's tool calls."""

    opening = "_"

    def parse(self, text: str) -> tuple[str | None, list[tuple[str, str]]]:
        """Return the content of a reply, and its calls; what is not all of it a call is content."""
        call = _CALL.fullmatch(text)
        return (None, [("check", json.dumps({"answer": call[1]}))]) if call else (text, [])
