"""Ask again after a wrong answer, for less reward: `MultiTurnWorkflow`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from areal_core._checks import check_integer, check_number
from areal_core.offload import Place
from areal_core.types import GenerationHyperparameters, InferenceEngine, ModelRequest, RolloutWorkflow
from areal_core.workflows._gconfig import check_gconfig
from areal_core.workflows._rewarding import RewardFn, Rewarding
from areal_core.workflows.single_turn import input_ids
from areal_core.workflows.transcript import Transcript

__all__ = ["MultiTurnWorkflow"]


class MultiTurnWorkflow(RolloutWorkflow):
    """Ask the model until its answer is right, *max_turns* times at most.

    An answer is right when its reward is *enough* or more. After any other the model is told the tokens
    ``feedback(data, output_tokens)``, which also end its turn and begin the next as its chat template wants;
    then it is asked with the whole conversation. The reward is that of the last answer, times *discount* for
    each turn before it; with rewards below 0 it would pay to need more turns.

    *reward_fn* is called with all tokens before the answer, those of the answer, and the item of data. It,
    *gconfig*, *tokenize*, *reward_in* and *reward_timeout* are as in `SingleTurnWorkflow`; *feedback* runs on
    the loop.
    Trained are the replies of all turns. All turns go to one server, where the conversation is in the cache.
    """

    def __init__(
        self,
        reward_fn: RewardFn,
        gconfig: GenerationHyperparameters,
        feedback: Callable[[Any, list[int]], Iterable[int]],
        tokenize: Callable[[Any], Iterable[int]] | None = None,
        *,
        max_turns: int = 4,
        discount: float = 0.9,
        enough: float = 1.0,
        reward_in: Place = "thread",
        reward_timeout: float | None = 60.0,
    ) -> None:
        self._rewarding = Rewarding(reward_fn, reward_in, reward_timeout)
        self._gconfig = check_gconfig(gconfig)
        self._feedback = feedback
        self._tokenize = tokenize or input_ids
        self._max_turns = check_integer("max_turns", max_turns, least=1)
        self._discount = check_number("discount", discount, least=0.0, most=1.0)
        self._enough = check_number("enough", enough)

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any]:
        """Return the trajectory of one conversation."""
        transcript = Transcript(self._tokenize(data))
        conversation = uuid4().hex
        turn = 0
        while True:
            turn += 1
            reply = await engine.agenerate(ModelRequest(transcript.tokens, self._gconfig, rid=conversation))
            transcript.hear(reply)
            reward = await self._rewarding.reward(reply.input_tokens, reply.output_tokens, data)
            if reward >= self._enough or turn == self._max_turns:
                return transcript.trajectory(reward * self._discount ** (turn - 1))
            transcript.tell(self._feedback(data, reply.output_tokens))
