"""Count what one generation brings, in any dialect, and refuse what no dialect allows."""

from __future__ import annotations

from collections.abc import Sequence

from areal_core._engine.backend import Ask, Piece, ReplyError


def is_end(data: bytes) -> bool:
    """Return whether the data of an event says nothing but that the stream ends, or nothing at all."""
    return data.strip() in (b"", b"[DONE]")


def ended(piece: Piece | None) -> Piece:
    """Return *piece*, of a reply that is one document. Raises ReplyError if it is no whole reply."""
    if piece is None or piece.finish is None:
        raise ReplyError("the reply has no finish reason, though it is no event of a stream")
    return piece


class Tally:
    """The tokens of one generation so far."""

    def __init__(self, ask: Ask) -> None:
        self._most = ask.max_new_tokens
        self._finished = False
        self.tokens = 0

    def piece(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        finish: str | None,
        label: int | None = None,
        versions: Sequence[int] | None = None,
    ) -> Piece | None:
        """Return and count what came; None when that is nothing. Raises ReplyError when it cannot be."""
        if len(tokens) != len(logprobs):
            raise ReplyError(f"the reply has {len(tokens)} token ids and {len(logprobs)} log-probabilities")
        if versions is not None and len(versions) != len(tokens):
            raise ReplyError(f"the reply has {len(tokens)} token ids and {len(versions)} versions")
        if not tokens and finish is None:
            return None
        if self._finished:
            raise ReplyError("the stream goes on behind its finish reason")
        self.tokens += len(tokens)
        self._finished = finish is not None
        self._check(finish)
        if logprobs and max(logprobs) > 0:  # rounded up
            logprobs = [min(logprob, 0.0) for logprob in logprobs]
        return Piece(tokens, logprobs, finish, label, versions)

    def _check(self, finish: str | None) -> None:
        if self.tokens > self._most:
            raise ReplyError(f"the reply has {self.tokens} tokens; at most {self._most} were asked for")
        if not self.tokens and finish != "abort":
            raise ReplyError(f"the reply has no tokens, and its finish reason is {finish!r}")
