"""A policy learns from nothing to write digits backwards: asynchronously, then synchronously.

    python examples/train_reversal              # a minute and a half
    python examples/train_reversal --quick      # too few steps to learn it, to see it run
    python examples/train_reversal --workers 2  # rollouts in two other processes, on Ray

Reinforcement learning in earnest: a small transformer, an inference server that generates with its weights,
GRPO, new weights after each step while answers are under way. training.py has what areal_core does in it.

```text
  training.py   the training loop: twenty lines       reversal.py         prompts, reward and workflow
  learner.py    a step: advantages, minibatches       policy_gradient.py  loss and backward pass
  adam.py       the optimizer                         journal.py          what happened, step by step
  progress.py   what is shown meanwhile               report.py           tables at the end
  picture.py    the curves                            workers.py          who plays the rollouts
```
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from importlib.util import find_spec

_QUICK_STEPS = 10


def main() -> int:
    """Train twice, and show how it went; return the exit status."""
    parser = argparse.ArgumentParser(description="Train a policy asynchronously, then synchronously.")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_STEPS} steps instead of 45")
    parser.add_argument("--seed", type=_count, default=0, help="of weights and prompts (default: 0)")
    parser.add_argument(
        "--max-staleness",
        type=_count,
        default=2,
        help="how many versions old what the asynchronous run trains on may be (default: 2)",
    )
    parser.add_argument(
        "--plot", default="train_reversal.png", help="where the curves go (default: %(default)s)"
    )
    parser.add_argument("--no-plot", action="store_true", help="draw no curves; does without matplotlib")
    parser.add_argument(
        "--workers",
        type=_count,
        default=0,
        help="processes that play the rollouts, on Ray (default: this one)",
    )
    arguments = parser.parse_args()
    if arguments.workers and find_spec("ray") is None:
        parser.error("argument --workers: Ray is not installed; pip install 'areal-core[ray]'")

    # Read when NumPy is imported. One more thread would take the server's core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a demo tells nobody that it ran
    from comparison import compare
    from training import Plan

    if not arguments.no_plot:
        from picture import check_path  # matplotlib: only when something is to be drawn

        try:
            check_path(arguments.plot)
        except ValueError as error:
            parser.error(f"argument --plot: {error}")
    plan = Plan(seed=arguments.seed, workers=arguments.workers)
    if arguments.quick:
        plan = replace(plan, steps=_QUICK_STEPS)
    return compare(plan, arguments.max_staleness, None if arguments.no_plot else arguments.plot)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
