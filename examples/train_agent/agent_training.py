"""Training an agent with areal_core: `train` is all there is to it.

```text
  the trainer's thread        the executor's loop                 the agent, here or in a program
                                                    messages
  prepare_batch <-- groups of 8 -- recorded tokens <========= chat.completions.create, tools
       |            trajectories        |     ^                     ^
  learner.learn                         |     | tokens              '-- check(answer), its tool
       |                                v     |
  update_weights --------------->  inference server: policy
```

The agent speaks in messages; what it is trained on are the tokens that the server sampled, one by one, and
those alone. `ServerLog` compares them with what the server says that it sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from areal_core import InferenceEngineConfig, RemoteInfEngine, RolloutWorkflow, WorkflowExecutor
from areal_core.agents import Agent, ChatFormat
from areal_core.embedded import ChatTokenizer, EmbeddedServer, policy
from demonstrations import imitate
from digit_calls import DigitCalls
from learner import Learner
from placing import placed
from questions import Questions
from server_log import ServerLog
from summary import Summary


@dataclass(frozen=True)
class Plan:
    """How much to train."""

    steps: int = 24
    seed: int = 0
    demonstrations: int = 250  # batches
    batch: int = 12  # questions for a step
    group: int = 8  # episodes for a question
    max_staleness: int = 1
    in_flight: int = 128  # episodes


def train(plan: Plan, workflow: RolloutWorkflow | Agent) -> tuple[Summary, ServerLog]:
    """Train the policy as the agent of *workflow*; return what happened, and what the server says of it."""
    config = InferenceEngineConfig(
        consumer_batch_size=plan.batch,
        max_head_offpolicyness=plan.max_staleness,
        max_concurrent_rollouts=plan.in_flight,
        stream_replies=False,  # they are of five tokens at most
        progress=False,  # a line for each step is shown
    )
    chat = ChatFormat(ChatTokenizer("policy"), tool_calls=DigitCalls())
    learner = Learner(plan.seed, plan.steps)
    imitate(learner.parameters, plan.seed, plan.demonstrations)
    with TemporaryDirectory() as directory:
        weights = Path(directory, "weights.npz")
        policy.save(weights, learner.parameters, 0)
        with (
            EmbeddedServer(mode="policy", weights=weights, ms_per_token=4, log_tokens=True) as server,
            RemoteInfEngine(config, backend="sglang", chat=chat) as engine,
            WorkflowExecutor(config, engine) as executor,
        ):
            engine.initialize(server.addr)
            questions, log, summary = Questions(plan.batch, plan.seed), ServerLog(server), Summary(plan.steps)
            for version in range(1, plan.steps + 1):
                batch = executor.prepare_batch(questions, workflow, group_size=plan.group)
                log.check(batch)
                learner.learn([placed(group) for group in batch])
                policy.save(weights, learner.parameters, version)
                executor.runner.run(engine.update_weights_from_disk, weights, version)
                summary.add(batch)
    return summary, log
