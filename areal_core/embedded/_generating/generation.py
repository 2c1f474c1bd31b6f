"""One generation: which of its tokens exist at which time, and what made them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from areal_core.embedded._models.tokens import Finish, Prefix, Sampling
from areal_core.embedded._models.weights import Span, Weights


@dataclass(frozen=True)
class Ask:
    """One prompt to generate from, in the words of no dialect."""

    id: str
    """Unique among those that have not ended."""
    prompt: Sequence[int]
    sampling: Sampling


class Generation:
    """What becomes of an `Ask`.

    Token number k, counted from 1, exists from k times its pace after it began. Models may have made
    tokens ahead of that: these are a draft, which nobody sees, and which is cut off where the generation
    is aborted or the weights change.
    """

    def __init__(
        self,
        ask: Ask,
        prefix: Prefix,
        most: int,
        pace_s: float,
        accepted: float,
        abort_after: int | None = None,
    ) -> None:
        self.id = ask.id
        self.prompt = ask.prompt
        self.sampling = ask.sampling
        self.accepted = accepted
        """When it came, in seconds on the machine's monotonic clock."""
        self.finish: Finish | None = None
        """Why there are no more tokens; None while there may be."""
        self.most = most
        """The most tokens it may have."""
        self.abort_after = abort_after
        """Aborted when it has so many tokens; None: not for that."""
        self.pace_s = pace_s
        self.prefix = prefix
        self.drafted: Finish | None = self.end_by_count()
        """Why there are no tokens after those in the draft; None where there may be."""
        self.began: float | None = None
        """On the server's running clock; None while it waits."""
        self._ran_s = 0.0
        self.wake: float | None = None
        """When it is to be looked at next, on the running clock."""
        self._shown = 0
        self._spans: list[Span] = []

    def __len__(self) -> int:
        """Return how many tokens it has."""
        return self._shown

    def tokens(self, start: int = 0) -> list[int]:
        """Return the tokens from number *start*, counted from 0."""
        return self.prefix.tokens[start : self._shown]

    def logprobs(self, start: int = 0) -> list[float]:
        """Return the log-probability of each token from number *start*."""
        return self.prefix.logprobs[start : self._shown]

    def spans(self) -> list[Span]:
        """Return which weights made which tokens; together the spans cover all there are."""
        return [
            Span(one.weights, one.start, min(one.end, self._shown))
            for one in self._spans
            if one.start < self._shown
        ]

    # For the server alone

    @property
    def made(self) -> int:
        """How many tokens there are with the draft."""
        return len(self.prefix.tokens)

    def end_by_count(self) -> Finish | None:
        """Return why there may be no more tokens than those made, or None."""
        if self.made == self.abort_after:
            return Finish("abort", message="Aborted")
        return Finish("length") if self.made >= self.most else None

    def begin(self, now: float) -> None:
        """Run, from where it was when it was sent back to wait."""
        self.began = now - self._ran_s

    def halt(self, now: float) -> None:
        """Go back to wait."""
        assert self.began is not None
        self._ran_s, self.began = now - self.began, None

    def due(self, now: float) -> float:
        """Return how many tokens exist at *now* if it does not end before: infinity at no pace."""
        if self.began is None:
            return self._shown
        if self.pace_s == 0:
            return math.inf
        return math.floor((now - self.began) / self.pace_s)

    def news_at(self, streamed: bool) -> float:
        """Return when there is more to say of it, or to make, than now: *streamed* tells every token."""
        assert self.began is not None
        count = self._shown + 1 if streamed else max(self.made, self._shown + 1)
        if self.drafted is not None:
            count = min(count, self.made)
        return self.began + count * self.pace_s

    def draft(self, token: int, logprob: float, weights: Weights) -> None:
        """Append a token that *weights* made."""
        self.prefix.add(token, logprob)
        start = self.made - 1
        if self._spans and self._spans[-1].weights is weights:
            start = self._spans.pop().start
        self._spans.append(Span(weights, start, self.made))

    def show(self, now: float) -> bool:
        """Let the tokens due at *now* be seen; return whether there are more than before."""
        before = self._shown
        self._shown = int(min(self.due(now), self.made))
        return self._shown > before

    def cut(self) -> None:
        """Forget the draft, and with it the end."""
        if self._shown < self.made:
            self.drafted = None
            self._spans = self.spans()
            self.prefix.cut(self._shown)
