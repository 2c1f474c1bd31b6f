"""Which call continues which: `rows_of`.

An agent sends the whole conversation with each call. Where a prompt begins with all tokens of an earlier
call, what that one sampled is read again as it was sampled, and both can be trained in one row: a row is a
chain of such calls, and its tokens are those that its last call read and sampled. Anything else begins a row:
another agent, a branch, a call in parallel, and a history that was edited, cut, or written anew.

Each sampled token is trained in one row, and before it stand exactly the tokens that the model read when it
sampled it. Nothing but tokens decides, for nothing else is in that context: whether a call was over when the
next began is not asked. A client that reads a stream may go on before the stream is at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from areal_core._agents.call import Call


@dataclass(slots=True, eq=False)
class Row:
    """Calls of which each continues the one before it; there is at least one, and all sampled something."""

    calls: list[Call]

    def __len__(self) -> int:
        return _length(self.calls[-1])

    @property
    def tokens(self) -> list[int]:
        """All its tokens: what its calls sampled, and what the model was told before and between."""
        last = self.calls[-1]
        return last.prompt_tokens + last.output_tokens

    def sampled(self) -> Iterator[tuple[slice, Call]]:
        """Yield each call, with where in the row the tokens are that it sampled."""
        for call in self.calls:
            yield slice(len(call.prompt_tokens), _length(call)), call

    def is_continued_by(self, call: Call) -> bool:
        """Return whether *call* was asked with all tokens of this row, and maybe more."""
        last, prompt = self.calls[-1], call.prompt_tokens
        told = len(last.prompt_tokens)
        # Few others have the same reply at the same place: for most rows the long part is not even copied.
        return prompt[told : len(self)] == last.output_tokens and prompt[:told] == last.prompt_tokens


def rows_of(calls: Iterable[Call]) -> list[Row]:
    """Return the rows that *calls* make, in the order in which the rows began.

    The calls come in the order in which they began. Each continues the longest row that it can, of several
    with the same tokens the first. One that sampled nothing is in no row.
    """
    rows: list[Row] = []
    for call in calls:
        if not call.output_tokens:  # its prompt, in a row, would only keep others from continuing that
            continue
        earlier = [row for row in rows if row.is_continued_by(call)]
        if earlier:
            max(earlier, key=len).calls.append(call)
        else:
            rows.append(Row([call]))
    return rows


def _length(call: Call) -> int:
    return len(call.prompt_tokens) + len(call.output_tokens)
