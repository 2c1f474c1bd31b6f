"""Texts without the keys and passwords that are in them: `without_keys`, `names_a_key`.

In doubt something harmless is hidden, rather than a key shown; the guide to logs says what is. Each
expression takes time linear in the text: it looks no further than to where its next match can begin.
"""

from __future__ import annotations

import functools
import re

__all__ = ["HIDDEN", "names_a_key", "without_keys"]

HIDDEN = "***"

_TOKEN = "(?:access|auth|hf|id|refresh|session)[_-]?token"
_BEGIN = "(?<![a-z0-9])"
_NAME = rf"(?:api[_-]?key|{_TOKEN}|password|secret|credential)s?_*"
_HEADER = r"(?:authorization|cookie)s?_*"
"""What may have more than one word: a scheme and a key, or parameters."""

_NAMES_A_KEY = re.compile(rf"{_BEGIN}(?:{_NAME}|{_HEADER})$", re.IGNORECASE)
_KEY = re.compile(
    rf"""
    ( {_BEGIN}
      (?: (?<=[?&])(?:key|token)=
      |   bearer\s+
      |   (?: {_NAME} | (?P<header>{_HEADER}) )
          (?: \\{{0,8}}["']\s*,\s*(?=[\[(]?b?\\{{0,8}}["'])  # a pair in a tuple
          |   (?:\\{{0,8}}["'])?\s*[=:]\s* ) )  # a field, a line of a header, an entry of a dict or JSON
    )
    (?: (?P<list>[\[(](?=\s*b?\\{{0,8}}["'])) | (?:b|\w+\()? (?P<quote>\\{{0,8}}["']) )?
    (?(list)   (?: "[^"\n]*+"? | '[^'\n]*+'? | [^\])"'] )*+  # to what closes the list
    | (?(quote)  (?: (?!(?P=quote)) (?:\\.|.) )*+     # to the quote that closes it
    | (?(header)
        (?: (?:[^\s"']+[ \t]+)? [^\s"']*=[^\s=] .*    # with parameters: to the end of the line
        |   [^\s"']+ (?:[ \t]+b?\\{{0,8}}["']?[^\s"']+)? )  # a scheme and a key, or one of them
      | (?:(?:basic|bearer|token)\s+)? (?: [\[(] [^\])"'\n]*+ [^\s"']* | [^\s"']+ ) )))
    """,
    re.IGNORECASE | re.VERBOSE,
)

_IN_USERINFO = r"\w.~!$&'()*+,;=:%@-"
_USERINFO = re.compile(
    rf"""
    ( (?!\[)[^\s/?\#:@"<>]*: (?!\d{{1,5}}[^{_IN_USERINFO}]|[/?\#]) )  # a user, no host with its port
    (?: [^\s/?\#]+ | \S+ ) (?=@)
    | [{_IN_USERINFO}]+ (?=@)  # a user alone, which may be a token
    """,
    re.VERBOSE,
)
"""A password or a user, behind a URL's "://": what RFC 3986 reads as host and port stays, and all else before
an "@" is hidden. So digits are a port only before a character that it forbids in a password: "/" and "|", not
"," and "&". In what it cannot read at all, the last "@" of the word counts."""


@functools.lru_cache(maxsize=1000)
def names_a_key(name: str) -> bool:
    """Return whether a field of this *name* is hidden, whatever is in it."""
    return _NAMES_A_KEY.search(name) is not None


def without_keys(text: str) -> str:
    """Return *text* with `HIDDEN` for each key and password."""
    if _KEY.search(text):  # which is much faster than sub
        text = _KEY.sub(lambda key: f"{key[1]}{key['list'] or key['quote'] or ''}{HIDDEN}", text)
    if "://" not in text:
        return text
    return "://".join(_without_user(part) for part in text.split("://"))


def _without_user(rest: str) -> str:
    """Return what stands behind a "://", up to the next one, without a user's password."""
    found = _USERINFO.match(rest)
    return f"{found[1] or ''}{HIDDEN}{rest[found.end() :]}" if found else rest
