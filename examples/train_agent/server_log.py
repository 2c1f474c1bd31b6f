"""Whether what is trained on is what was generated, by the server's own word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from areal_core.embedded import EmbeddedServer, policy

Trajectory: TypeAlias = dict[str, Any]
"""A group's: arrays of one row per conversation."""
_NEEDED = "input_ids", "versions", "loss_mask"
_Said: TypeAlias = tuple[tuple[int, int], ...]
"""Tokens, and of each the version of the weights that made it."""


class ServerLog:
    """Compares trajectories with what *server*, which has the option ``log_tokens``, wrote down."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._read = 0
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._generated: defaultdict[tuple[int, ...], set[_Said]] = defaultdict(set)
        self.checked = 0
        """How many rows have been compared."""
        self.wrong: list[str] = []
        """The texts of those in which something is trained that the server did not generate there."""

    def check(self, batch: Iterable[Trajectory]) -> None:
        """Compare each row of *batch*: replies, versions, and before each reply what the server read."""
        events = self._server.log()
        for event in events[self._read :]:
            self._note(event)
        self._read = len(events)
        for group in batch:
            for tokens, versions, mask in zip(*(group[name].tolist() for name in _NEEDED), strict=True):
                self.checked += 1
                if not self._has(tokens, versions, mask):
                    self.wrong.append(policy.decode(tokens))

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            self._prompts[event["id"]] = tuple(event["input_ids"])
        elif event["event"] == "end":
            versions = [version for version, count in event["versions"] for _ in range(count)]
            said = tuple(zip(event["output_ids"], versions, strict=True))
            self._generated[self._prompts.pop(event["id"])].add(said)

    def _has(self, tokens: list[int], versions: list[int], mask: list[int]) -> bool:
        all_made = all(version >= 0 for version, trained in zip(versions, mask, strict=True) if trained)
        said = list(zip(tokens, versions, strict=True))
        return all_made and all(
            self._was_said(tuple(tokens[:begin]), tuple(said[begin:end]))
            for begin, end in replies_in(versions)
        )

    def _was_said(self, before: tuple[int, ...], said: _Said) -> bool:
        """Return whether *said* was generated behind *before*: at once, or by parts when it was cut off."""
        if not said:
            return True
        parts = [part for part in self._generated[before] if part and said[: len(part)] == part]
        return any(
            self._was_said(before + tuple(token for token, _ in part), said[len(part) :]) for part in parts
        )


def replies_in(versions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where each reply in a row begins and ends: what the model did not say has the version -1."""
    begins = None
    for place, version in enumerate([*versions, -1]):
        if version >= 0 and begins is None:
            begins = place
        elif version < 0 and begins is not None:
            yield begins, place
            begins = None
