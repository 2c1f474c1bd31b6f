"""Asynchronous training with areal_core: `train` is all there is to it.

```text
  the trainer's thread               the executor's loop             the server's process

  prepare_batch  <-- the oldest 32 --  groups of 8 answers  <-- HTTP --  tokens, by the weights
       |              that are done    are always under way                it has by then
  learner.learn                                 |                              ^
       |                                        |                              |
  update_weights ------------------------> interrupts all, they go on ---------'
```

``prepare_batch`` keeps as many rollouts going as the bound on staleness allows, returns 32 groups that are
done, and leaves the others under way while the trainer trains on these. With a bound of 0, all that is
delivered has to be made by the current weights: nothing is started ahead, and the very same loop trains
synchronously.

With workers the middle is played in other processes. workers.py has what that takes; nothing changes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from areal_core import (
    DistributedWorkflowExecutor,
    EmbeddedServer,
    InferenceEngineConfig,
    RemoteInfEngine,
    WorkflowExecutor,
)
from areal_core.embedded import policy
from journal import Journal
from learner import Learner
from reversal import Answer, Prompts, Reverse, answers
from workers import make_executor


@dataclass(frozen=True)
class Plan:
    """How much to train."""

    steps: int = 45
    seed: int = 0
    batch: int = 32  # prompts for a step
    group: int = 8  # answers to a prompt
    in_flight: int = 128  # answers: as many as the server generates at once
    questions: int = 128  # to ask before and after
    workers: int = 0  # processes that play the rollouts; 0: this one does


def train(plan: Plan, journal: Journal, on_step: Callable[[Journal], object]) -> None:
    """Train on a server with weights that know nothing; write down in *journal* what happens."""
    config = InferenceEngineConfig(
        consumer_batch_size=plan.batch,
        max_head_offpolicyness=journal.max_staleness,
        max_concurrent_rollouts=plan.in_flight,
        progress=False,  # the demo shows its own
    )
    learner = Learner(plan.seed, plan.steps)
    prompts, workflow = Prompts(plan.batch, plan.seed), Reverse(f"train-{plan.seed}")
    with TemporaryDirectory() as directory:
        weights = Path(directory, "weights.npz")
        policy.save(weights, learner.parameters, 0)
        with EmbeddedServer(mode="policy", weights=weights) as server, RemoteInfEngine(config) as engine:
            engine.initialize(server.addr)
            with make_executor(plan.workers, config, engine, server.addr) as executor:
                journal.before = ask(executor, plan)
                journal.start()
                for version in range(plan.steps):
                    batch = executor.prepare_batch(prompts, workflow, group_size=plan.group)
                    journal.delivered(batch, engine.get_version(), executor.ledger.running)
                    learner.learn(batch)
                    policy.save(weights, learner.parameters, version + 1)
                    executor.runner.run(engine.update_weights_from_disk, weights, version + 1)
                    journal.updated()
                    on_step(journal)
                journal.after = ask(executor, plan)
                journal.ledger, journal.report = executor.ledger, executor.report()
                journal.aborted = server.stats().aborted
                if isinstance(executor, DistributedWorkflowExecutor):
                    journal.workers = executor.workers()


def ask(executor: WorkflowExecutor, plan: Plan) -> list[Answer]:
    """Return the policy's likeliest answers to some questions of another seed."""
    questions = next(iter(Prompts(plan.questions, plan.seed + 1)))
    rows = executor.rollout_batch(questions, Reverse(f"ask-{plan.seed}", temperature=0), is_eval=True)
    return [answer for row in rows if row is not None for answer in answers(row)]
