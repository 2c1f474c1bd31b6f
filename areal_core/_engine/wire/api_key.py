"""The secret a server asks for."""

from __future__ import annotations

import json
import re
from urllib.parse import quote


class ApiKey:
    """A bearer token, or none. It shows nowhere but in the header that carries it.

    Raises TypeError, and ValueError for what no header can carry.
    """

    def __init__(self, key: str | None) -> None:
        if key is not None and not isinstance(key, str):
            raise TypeError(f"an API key is a {type(key).__name__}, not a str")
        if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError("an API key is empty, or has blanks around it or characters no header can carry")
        self._key = key
        self._forms = None if key is None else _forms(key)

    def headers(self) -> dict[str, str]:
        """Return the header for it."""
        return {} if self._key is None else {"Authorization": f"Bearer {self._key}"}

    def scrub(self, text: str) -> str:
        """Return *text* without it: a server may have sent it back."""
        return text if self._forms is None else self._forms.sub("[API key]", text)

    def __repr__(self) -> str:
        return "<ApiKey>"


def _forms(key: str) -> re.Pattern[str]:
    """Return a pattern for *key* as it is, in JSON, and in a URL."""
    in_json = json.dumps(key)[1:-1]
    forms = {key, in_json, in_json.replace("/", r"\/"), quote(key), quote(key, safe="")}
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), re.IGNORECASE)
