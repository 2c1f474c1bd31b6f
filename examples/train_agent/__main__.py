"""A policy learns to use a tool: as an agent written with OpenAI's SDK, which knows nothing of training.

    python examples/train_agent                 # the agent runs in the trainer's process
    python examples/train_agent --program       # it is a program of its own, and is given URL and key
    python examples/train_agent --quick         # too few steps to learn it, to see it run

It takes half a minute, and needs the extra ``openai``.

The agent is asked for three digits backwards. It may have its answer checked by a tool before it gives it,
and its answer counts half if it did not. At first it is careless, and mostly does not ask. The exit status is
1 if it has not learned to, or if it was trained on a token that the server did not sample just there.

```text
  agent.py           the agent: all that a user writes    agent_training.py  the training loop
  in_process.py      it as a workflow                     as_program.py      it as a program
  digit_calls.py     how the policy calls tools           placing.py         rows as the policy reads them
  demonstrations.py  what it knows at first               server_log.py      is that what was sampled?
  questions.py       what it is asked                     summary.py         what is printed
```

The learner is that of examples/train_reversal.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path

_QUICK_STEPS = 4


def main() -> int:
    """Train, and print how it went; return the exit status."""
    parser = argparse.ArgumentParser(description="Train an agent that uses a tool.")
    parser.add_argument("--program", action="store_true", help="run the agent as a program of its own")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_STEPS} steps instead of 24")
    parser.add_argument("--seed", type=int, default=0, help="of weights and questions (default: 0)")
    arguments = parser.parse_args()

    # The learner is there: optimizer, loss and gradient, which have nothing to do with agents.
    sys.path.append(str(Path(__file__).parent.parent / "train_reversal"))
    # Read when NumPy is imported. One more thread would take the server's core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # NumPy lets go of the interpreter lock in each call, and the rollouts' thread would keep it for 5 ms.
    sys.setswitchinterval(0.0005)
    # What it would warn of is that these two, in one process, wait for each other on a busy machine.
    logging.getLogger("areal_core").setLevel(logging.ERROR)
    from agent_training import Plan, train
    from as_program import AgentProgram
    from in_process import InProcess

    plan = Plan(seed=arguments.seed)
    if arguments.quick:
        plan = Plan(seed=arguments.seed, steps=_QUICK_STEPS, demonstrations=_QUICK_STEPS * 20)
    try:
        with AgentProgram() if arguments.program else nullcontext(InProcess()) as workflow:
            summary, log = train(plan, workflow)
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    summary.show(log)
    return 0 if not log.wrong and (arguments.quick or summary.is_learned) else 1


if __name__ == "__main__":
    sys.exit(main())
