"""What the two trainers print: `Table`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from areal_core import WorkflowExecutor
from counting.task import GCONFIG, CountOn, Trajectory, questions


class Table:
    """Prints how *steps* steps go, a fifth of them in a row, and what came of it."""

    def __init__(self, steps: int) -> None:
        self._fifth = steps // 5
        self._prompts = 0
        self._rewards: list[float] = []
        self._oldest: list[int] = []
        print("steps    mean reward  oldest token, in versions")

    def add(self, batch: Sequence[Trajectory], version: int) -> None:
        """Add the step that *batch* is for, which was handed over at *version*."""
        self._prompts += len(batch)
        self._rewards.append(fmean(group["rewards"].mean().item() for group in batch))
        made_by = [group["versions"][group["loss_mask"] == 1].min().item() for group in batch]
        self._oldest.append(version - min(made_by))
        if len(self._rewards) % self._fifth == 0:
            span = f"{len(self._rewards) - self._fifth + 1}-{len(self._rewards)}"
            reward, oldest = fmean(self._rewards[-self._fifth :]), max(self._oldest[-self._fifth :])
            print(f"{span:<7}  {reward:11.2f}  {oldest:25}", flush=True)

    def end(self, executor: WorkflowExecutor) -> bool:
        """Print the rest; return whether the reward has risen, and no prompt is lost."""
        answers = executor.rollout_batch(questions(50, 1), CountOn(GCONFIG.new(greedy=True)), is_eval=True)
        right = sum(answer is not None and answer["rewards"].item() == 1 for answer in answers)
        first, last = fmean(self._rewards[: self._fifth]), fmean(self._rewards[-self._fifth :])
        ledger = executor.ledger
        dropped = ledger.collected - executor.report().delivered
        under_way = ledger.pending + ledger.running + ledger.finished
        lost = ledger.submitted - self._prompts - dropped - under_way
        print(f"mean reward {first:.2f} at first, {last:.2f} at last; {right} of 50 likeliest answers right")
        print(f"{ledger.submitted} prompts: {self._prompts} trained on, {dropped} too old,", end=" ")
        print(f"{under_way} under way, {lost} lost")
        return last > first and lost == 0
