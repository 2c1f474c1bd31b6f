"""What the episodes of a soak run do: most of them well, each of the others in its own way."""

from __future__ import annotations

import asyncio
import random
import time
from functools import lru_cache
from typing import Any

import numpy as np

from areal_core.types import GenerationHyperparameters, InferenceEngine, ModelRequest, RolloutWorkflow
from areal_core.workflows import Transcript

EPISODE_TIMEOUT_S = 4.0
BLOCKED_S = 0.35
"""How long user code holds the loop; the library names it after LOOP_BLOCK_WARNING_S."""
LOOP_BLOCK_WARNING_S = 0.15

_DECK = (
    *("plain",) * 12,
    *("two turns",) * 3,
    *("slow",) * 2,
    *("raises", "says none", "is filtered out", "never ends", "cancels itself"),
    *("blocks the loop", "cleans up slowly"),
)
KINDS = tuple(dict.fromkeys(_DECK))

MAY_BE_ACCEPTED = frozenset({"plain", "two turns", "slow", "blocks the loop", "cleans up slowly"})
"""The kinds of items of which a trajectory may come."""


class PlannedError(Exception):
    """What an item's workflow raises because it is to raise."""


def kind_of(seed: int, number: int) -> str:
    """Return what the workflow does with item *number*: each kind comes once in so many items."""
    block, place = divmod(number, len(_DECK))
    return _dealt(seed, block)[place]


@lru_cache(maxsize=64)
def _dealt(seed: int, block: int) -> list[str]:
    return random.Random(f"{seed}/items/{block}").sample(_DECK, len(_DECK))


def item_of(seed: int, number: int) -> dict[str, Any]:
    """Return item *number*, whose prompt says its number."""
    return {"data_id": number, "kind": kind_of(seed, number), "input_ids": list(b"item %d. " % number)}


def number_in(prompt: bytes) -> int:
    """Return the number that a prompt of `item_of` says. Raises ValueError."""
    head, _, rest = prompt.partition(b". ")
    if not head.startswith(b"item ") or rest == prompt:
        raise ValueError(f"{prompt[:20]!r} is no prompt")
    return int(head[5:])


def accept(trajectory: dict[str, Any]) -> bool:
    """Filter out what is to be filtered out."""
    return not trajectory["unwanted"].any()


class Playing(RolloutWorkflow):
    """Plays an item the way its kind says."""

    async def arun_episode(self, engine: InferenceEngine, data: dict[str, Any]) -> dict[str, Any] | None:
        kind, number = data["kind"], data["data_id"]
        dice = random.Random(number)
        if kind == "never ends":
            await asyncio.Event().wait()
        if kind == "cancels itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        if kind == "slow":
            await asyncio.sleep(dice.uniform(0.1, 1.0))
        transcript, is_exact = Transcript(data["input_ids"]), True
        try:
            for turn in range(1 + (kind == "two turns")):
                if turn:
                    transcript.tell(b" And? ")
                reply = await engine.agenerate(
                    ModelRequest(
                        transcript.tokens,
                        GenerationHyperparameters(max_new_tokens=dice.randint(6, 24), ignore_eos=True),
                        rid=f"item-{number}" if kind == "two turns" else None,
                    )
                )
                transcript.hear(reply)
                is_exact = is_exact and reply.versions_exact
        finally:
            if kind == "cleans up slowly":
                await asyncio.sleep(0.05)
        if kind == "raises":
            raise PlannedError(f"item {number}")
        if kind == "blocks the loop":
            hold_the_loop()
        if kind == "says none":
            return None
        return {
            **transcript.trajectory(dice.random()),
            "exact": np.array([is_exact]),
            "unwanted": np.array([kind == "is filtered out"]),
        }


def hold_the_loop() -> None:
    """Do what user code must not do on the loop."""
    time.sleep(BLOCKED_S)
