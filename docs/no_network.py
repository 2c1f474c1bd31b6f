"""Fail the build of a page that would fetch something from elsewhere.

The site has to work without a network.
"""

from __future__ import annotations

import re
from typing import Any

from mkdocs.exceptions import PluginError

_FETCHED = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)"
)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Look through the HTML of *page*. Raises PluginError."""
    found = _FETCHED.search(output)
    if found:
        raise PluginError(
            f"{page.file.src_uri} fetches {found[1]}; nothing of the site may be elsewhere"
        )
    return output
