"""What an engine knows of its servers' weights when another one, in another process, has control of them.

It is told of a version a moment after the servers have got it, and not at all of servers that are lost and
come back. So what servers show of their weights, their labels, counts for more than what was told:

- A label is believed. Tokens are of the version that their server had when they were asked for, or of the
  label that comes with them, whichever is older.
- Where a server has shown nothing since, it has at least the version that was told: who has control tells of
  one when all servers have it.
- Where some server shows the version that was told, those that show an older one were lost by who has
  control. They are not used until it has given them the weights.
"""

from __future__ import annotations

import weakref
from typing import Any

from areal_core._engine.backend import Piece
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Moment, Policy
from areal_core._engine.proof import OldWeightsError, ask_weights
from areal_core._engine.recovery import AwaitsWeightsError, Recovery
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.config import InferenceEngineConfig

_UNTIL = (
    "it is out until the engine with control gives it the weights, or set_version() tells of those it has"
)
_NOTHING = -1


class Following:
    """What servers have shown of their weights, against what was told. Any thread may ask and tell."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._newest: Moment | None = None  # of what any server has shown
        self.asked: weakref.WeakKeyDictionary[Any, Moment] = weakref.WeakKeyDictionary()
        """When the process behind a connection was: one that is restarted has no connection left."""

    def shown_by(self, server: Server) -> ShownWeights:
        """Return what is known of the weights of what is asked of *server* now."""
        now, shown = self._policy.moment(), server.shown
        before = now if shown is None or shown.changes != now.changes else shown
        return ShownWeights(self, server, before)

    async def ask(self, server: Server, *, in_a_crowd: bool = False) -> tuple[int | None, Moment]:
        """Ask *server*, which is in rotation, for its weights; return what it says, and when it was asked.

        *in_a_crowd*: for one of many generations. Raises InferenceError.
        """
        now = self._policy.moment()
        label = await ask_weights(server, in_a_crowd=in_a_crowd)
        self.note(server, label, now)
        return label, now

    def note(self, server: Server, label: int | None, since: Moment) -> None:
        """Take note that *server* has shown *label* some time after *since*; None: it shows none."""
        if label is None:
            return
        server.tells_version = True
        if self._policy.held_since(since):  # else it may be of before what was told last
            server.weights, server.shown = label, Moment(label, since.changes)
            if label > self._newest_since_told:
                self._newest = server.shown

    def was_asked_since_told(self, connection: Any) -> bool:
        """Return whether the process behind *connection* was asked since a version was told."""
        asked = self.asked.get(connection)
        return asked is not None and self._policy.held_since(asked)

    def why_lost(self, server: Server, label: int | None) -> str | None:
        """Return why *server*, which shows *label*, is not to be used; None: it may be."""
        told, newest = self._policy.version, self._newest_since_told
        if label is None:
            return _shows_none(server) if server.tells_version else None
        if label >= told or newest < told:  # where none shows what was told, labels are not kept up
            return None
        return f"{server.name} has version {label}, where others have {newest}; {_UNTIL}"

    def why_out(self, server: Server, label: int | None) -> str | None:
        """Return why *server*, which shows *label*, is not to be taken in; None: it is."""
        told, newest = self._policy.version, self._newest_since_told
        if label is None:
            # One that was never in rotation may be new, and not have been given weights that have labels.
            is_lost = server.tells_version or (not server.departures and newest >= max(1, told))
            return _shows_none(server) if is_lost else None
        if label == told or label == newest > told:
            return None
        return f"{server.name} has version {label}, where {told} was told; {_UNTIL}"

    @property
    def _newest_since_told(self) -> int:
        newest = self._newest
        return newest.version if newest is not None and self._policy.held_since(newest) else _NOTHING


class ShownWeights:
    """The weights of what *server* was asked for once: those from *before* it was, and what it shows then."""

    __slots__ = ("_following", "_server", "before")

    def __init__(self, following: Following, server: Server, before: Moment) -> None:
        self._following = following
        self._server = server
        self.before = before
        """The oldest version that they can be of, and when that was known."""

    @property
    def oldest(self) -> int:
        """The oldest version that they can be of, by what is known now."""
        shown = self._server.shown
        if shown is None or shown.changes < self.before.changes:
            return self.before.version
        return min(self.before.version, shown.version)

    async def prove(self, piece: Piece, connection: Any) -> None:
        """Raise OldWeightsError when *piece*, from *connection*, is of weights that are not to be used.

        Raises InferenceError where the server cannot say now which they are.
        """
        following, server = self._following, self._server
        label = min(piece.versions) if piece.versions else piece.label
        if label is not None:
            server.labels_replies = True
            following.note(server, label, self.before)
        elif server.labels_replies:
            raise OldWeightsError(f"the replies of {server.name} bear no version any more")
        elif following.was_asked_since_told(connection):
            return
        else:
            label, asked = await following.ask(server, in_a_crowd=True)
            if following.why_lost(server, label) is None:
                following.asked[connection] = asked
        why = following.why_lost(server, label)
        if why is not None:
            raise OldWeightsError(why)


class FollowersRecovery(Recovery):
    """How servers come into rotation that another engine gives their weights, and has pause and continue.

    *at_first* is for those that are there when it all begins, which are believed whatever they have.
    """

    def __init__(
        self,
        config: InferenceEngineConfig,
        router: Router,
        opening: Opening,
        policy: Policy,
        following: Following,
        at_first: bool = False,
    ) -> None:
        super().__init__(config, router, opening, policy, at_first)
        self._following = following

    async def why_lost(self, server: Server) -> str | None:
        """Ask a server in rotation for its weights; return why it is not to be used, or None."""
        label, _ = await self._following.ask(server)
        return None if label is None else self._following.why_lost(server, label)

    async def _put_in(self, server: Server) -> None:
        moment = self._policy.moment()
        label = await ask_weights(server)
        why = None if self._at_first else self._following.why_out(server, label)
        if not self._policy.held_since(moment):
            return  # what was told meanwhile may be what it has
        if why is not None:
            raise AwaitsWeightsError(why)
        self._following.note(server, label, moment)
        self._router.put_in(server, lambda: self._policy.held_since(moment))


def _shows_none(server: Server) -> str | None:
    if server.backend.weight_version() is None:  # it cannot: only its replies show one
        return None
    return f"{server.name} tells no version, where it or others did; {_UNTIL}"
