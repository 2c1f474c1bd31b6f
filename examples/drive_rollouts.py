"""The main job: a synchronous loop drives rollouts over HTTP, a few hundred at a time.

    python examples/drive_rollouts.py            # half a minute
    python examples/drive_rollouts.py --quick    # a few seconds

`Trainer.play_epoch` is plain code that submits, waits for a batch and learns from it. Each rollout is a
coroutine that asks an inference server, here an embedded one in a process of its own. Some questions are
broken, some answers take too long, and an epoch does not wait for its slowest: the table at the end
accounts for every rollout. The server makes its answers up, so the reward stays what it is.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import NamedTuple

from areal_core import AsyncTaskRunner, TimedResult, workflow_context
from areal_core.embedded import EmbeddedServer


@dataclass(frozen=True)
class Scale:
    """How much to do, how fast the server is, and how long to wait for it."""

    epochs: int = 6
    questions: int = 640  # in an epoch
    enough: int = 608  # outcomes after which an epoch cancels what still runs
    batch: int = 32
    in_flight: int = 256
    ms_per_token: float = 16.0  # the median; the slowest requests take up to 8 times as long
    deadline_s: float = 3.0  # from the start of a rollout


QUICK = Scale(epochs=2, questions=120, enough=112, batch=16, in_flight=64, ms_per_token=4.0, deadline_s=0.75)


class Question(NamedTuple):
    """What is asked, and the letter that a right answer has in it."""

    text: str
    letter: str


class Rollout(NamedTuple):
    """What a rollout brings back."""

    reward: float
    tokens: int


Results = Sequence[TimedResult[Rollout]]

# -- on the runner's loop --------------------------------------------------------------------------


async def play(url: str, question: Question) -> Rollout:
    """Ask the server one question, and judge the answer."""
    session = await workflow_context.get_aiohttp_session()  # the loop's own, the same for every rollout
    body = {"text": question.text, "sampling_params": {"max_new_tokens": 64}}
    async with session.post(f"{url}/generate", json=body) as response:
        reply = await response.json()
    if response.status != 200:
        raise ValueError(f"refused: {reply['error']['message']}")
    return Rollout(float(question.letter in reply["text"]), reply["meta_info"]["completion_tokens"])


# -- in the trainer's thread -----------------------------------------------------------------------


class Trainer:
    """Has *runner* play rollouts and keeps what comes back."""

    def __init__(self, runner: AsyncTaskRunner[Rollout], url: str, scale: Scale) -> None:
        self.runner = runner
        self.url = url
        self.scale = scale
        self.results: list[TimedResult[Rollout]] = []

    def play_epoch(self, epoch: int) -> None:
        """Play an epoch's questions until enough of them have an outcome, and cancel the others."""
        scale, runner = self.scale, self.runner
        questions = ask(epoch, scale.questions)
        running: set[int] = set()
        ended = 0
        try:
            while ended < scale.enough:
                for question in itertools.islice(questions, scale.in_flight - len(running)):
                    running.add(runner.submit(play, self.url, question))
                batch = runner.wait(scale.batch, with_timing=True)
                self.results += batch  # a trainer takes its step here; the rollouts go on meanwhile
                running.difference_update(result.task_id for result in batch)
                ended += len(batch)
                show_progress(epoch, ended, scale.enough, len(running))
        finally:  # so that after Ctrl-C, too, every rollout is accounted for
            for task_id in running:
                runner.cancel(task_id)
            self.results += runner.as_completed()


def ask(epoch: int, count: int) -> Iterator[Question]:
    """Make up questions. One in forty is empty, as happens in data sets; the server refuses those."""
    for number in range(count):
        letter = "abcdefghijklmnopqrstuvwxyz"[number % 26]
        text = f"Epoch {epoch}, question {number}: write a line with the letter {letter} in it."
        yield Question(text if number % 40 else "", letter)


def main() -> int:
    """Play all epochs and print the table; return the exit status."""
    parser = argparse.ArgumentParser(description="Drive rollouts over HTTP from a synchronous loop.")
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of half a minute")
    scale = QUICK if parser.parse_args().quick else Scale()
    # Each rollout without a value is a line in the log, by default on stderr. The table has them all.
    logging.getLogger("areal_core").setLevel(logging.CRITICAL)

    with (
        EmbeddedServer(ms_per_token=scale.ms_per_token, slots=scale.in_flight) as server,
        AsyncTaskRunner[Rollout](scale.in_flight, task_timeout=scale.deadline_s) as runner,
    ):
        runner.run(workflow_context.get_aiohttp_session)  # imports aiohttp before the clock starts
        trainer = Trainer(runner, server.url, scale)
        interrupted = False
        start = time.monotonic()
        try:
            for epoch in range(1, scale.epochs + 1):
                epoch_start, before = time.monotonic(), len(trainer.results)
                trainer.play_epoch(epoch)
                show_epoch(epoch, trainer.results[before:], time.monotonic() - epoch_start)
        except KeyboardInterrupt:
            interrupted = True
            print(f"{WIPE}interrupted; this is what there was until then:")
        show_table(trainer, time.monotonic() - start, server)
    return 130 if interrupted else 0


# -- what a person sees ----------------------------------------------------------------------------

ON_TERMINAL = sys.stdout.isatty()
WIPE = "\r\033[K" if ON_TERMINAL else ""


def show_progress(epoch: int, ended: int, enough: int, in_flight: int) -> None:
    """Draw one line over the last; without a terminal, say nothing before the epoch is over."""
    if ON_TERMINAL:
        bar = ("#" * (30 * ended // enough)).ljust(30, ".")
        print(f"{WIPE}epoch {epoch}  [{bar}]  {ended} ended, {in_flight} run", end="", flush=True)


def show_epoch(epoch: int, results: Results, seconds: float) -> None:
    """Print what an epoch came to."""
    rewards = [result.data.reward for result in results if result.data]
    print(
        f"{WIPE}epoch {epoch}  {len(results)} rollouts in {seconds:.1f} s, "
        f"{len(rewards) / seconds:.0f} completed a second, mean reward {fmean(rewards or [math.nan]):.2f}",
        flush=True,
    )


def show_table(trainer: Trainer, seconds: float, server: EmbeddedServer) -> None:
    """Print what became of every rollout, and what it took."""
    results, scale = trainer.results, trainer.scale
    count = Counter(result.status for result in results)
    errors = Counter(str(result.error) for result in results if result.status == "failed")
    rows = [
        ("completed", count["completed"], "the answer came and was judged"),
        ("failed", count["failed"], "; ".join(errors) or "an exception"),
        ("timed_out", count["timed_out"], f"no answer within {scale.deadline_s:g} s of the start"),
        ("cancelled", count["cancelled"], "still running when its epoch was closed"),
        ("all", len(results), ""),
    ]
    print(f"{WIPE}\n{'outcome':<10}{'rollouts':>8}  what it means here")
    for outcome, number, meaning in rows:
        print(f"{outcome:<10}{number:8,}  {meaning}".rstrip())

    completed = [result for result in results if result.data]
    tokens = sum(result.data.tokens for result in completed if result.data)
    seen, ours = server.stats(), trainer.runner.stats()
    print(f"""
throughput   {len(completed) / seconds:,.0f} completed rollouts and {tokens / seconds:,.0f} tokens a second
latency      {percentiles(completed)}
connections  {seen.connections - 1:,} opened for {seen.requests - 1:,} requests; one cut short closes its own
wall time    {seconds:.1f} s
the runner   {ours.submitted} submitted = {ours.pending} pending + {ours.running} running
             + {ours.finished} finished + {ours.collected} collected + {ours.discarded} discarded

In {seconds:.1f} s one synchronous loop had {ours.submitted:,} rollouts played, up to {seen.peak} at a time.
{len(completed):,} brought a reward, {len(results) - len(completed):,} ended without one, \
{ours.submitted - len(results)} were lost.""")


def percentiles(completed: Results) -> str:
    """Say how long rollouts took from start to end."""
    if len(completed) < 2:
        return "too few completed to tell"
    cuts = quantiles((one.seconds for one in completed), n=100)
    return f"p50 {cuts[49]:.2f} s, p90 {cuts[89]:.2f} s, p99 {cuts[98]:.2f} s, of those completed"


if __name__ == "__main__":
    sys.exit(main())
