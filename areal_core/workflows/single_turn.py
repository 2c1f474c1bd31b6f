"""One question, one answer, one reward: `SingleTurnWorkflow`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from areal_core.offload import Place
from areal_core.types import GenerationHyperparameters, InferenceEngine, ModelRequest, RolloutWorkflow
from areal_core.workflows._gconfig import check_gconfig
from areal_core.workflows._rewarding import RewardFn, Rewarding
from areal_core.workflows.transcript import Transcript

__all__ = ["SingleTurnWorkflow"]


class SingleTurnWorkflow(RolloutWorkflow):
    """Ask the model once per item of data.

    *reward_fn* is called with the tokens of the prompt, those of the reply, and the item; it returns a float.
    It runs where *reward_in* says: "thread" is for what waits, or computes for a moment; "process" for what
    computes in Python for longer, or may hang or crash; "loop" for a coroutine function, and for what takes
    less than a millisecond. It has *reward_timeout* seconds, None: as many as it likes. Then the episode
    fails with a TimeoutError, as it does with whatever the function raises.

    The prompt is ``data["input_ids"]``, or ``tokenize(data)`` where *tokenize* is given, which runs on the
    loop. The trajectory is as `Transcript.trajectory` says.

    Raises TypeError and ValueError for what is no reward function, place, limit or *gconfig*; that has
    ``n_samples=1``.
    """

    def __init__(
        self,
        reward_fn: RewardFn,
        gconfig: GenerationHyperparameters,
        tokenize: Callable[[Any], Iterable[int]] | None = None,
        *,
        reward_in: Place = "thread",
        reward_timeout: float | None = 60.0,
    ) -> None:
        self._rewarding = Rewarding(reward_fn, reward_in, reward_timeout)
        self._gconfig = check_gconfig(gconfig)
        self._tokenize = tokenize or input_ids

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any]:
        """Return the trajectory of one question and its answer."""
        transcript = Transcript(self._tokenize(data))
        reply = await engine.agenerate(ModelRequest(transcript.tokens, self._gconfig))
        transcript.hear(reply)
        reward = await self._rewarding.reward(reply.input_tokens, reply.output_tokens, data)
        return transcript.trajectory(reward)


def input_ids(data: Any) -> list[int]:
    """Return the prompt of an item of *data* that has it as tokens; raises TypeError for others."""
    try:
        tokens: list[int] = data["input_ids"]
    except (TypeError, KeyError, IndexError):
        raise TypeError("data has no tokens under input_ids; put them there, or give `tokenize`") from None
    return tokens
