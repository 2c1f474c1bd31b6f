"""What is printed at the end: what the policy has learned, and how the two runs compare."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from areal_core.embedded import policy
from journal import SOLVED, Journal
from reversal import Answer

_COLOURS = "cyan", "yellow", "magenta", "green", "blue"
_PLACES = "submitted", "pending", "running", "finished", "collected", "discarded"
_SHOWN = 3
_ENOUGH_STEPS = 30


def show(console: Console, asynchronous: Journal, synchronous: Journal) -> None:
    """Print all of it."""
    console.print("\n[bold]Asked to write digits backwards[/]", before_and_after(asynchronous))
    if asynchronous.interrupted is not None:
        times = len(set(asynchronous.interrupted.versions)) - 1
        console.print(
            f"[bold]The weights changed {_times(times)} while this answer was written[/]", highlight=False
        )
        console.print(by_version(asynchronous.interrupted))
    console.print("[bold]The same training, twice[/]", comparison(asynchronous, synchronous))
    console.print("[bold]Where all groups of answers are at the end[/]", books(asynchronous, synchronous))
    console.print(verdict(asynchronous, synchronous), highlight=False)


def before_and_after(journal: Journal) -> Table:
    """Show some answers of the untrained policy beside those of the trained one."""
    table = Table("prompt", "untrained", f"trained for {len(journal.steps)} steps", box=SIMPLE_HEAD)
    for before, after in list(zip(journal.before, journal.after, strict=True))[:_SHOWN]:
        table.add_row(before.prompt, _judged(before), _judged(after))
    return table


def by_version(answer: Answer) -> Table:
    """Show which policy version made which token of *answer*."""
    versions = sorted(set(answer.versions))
    colour = {version: _COLOURS[place % len(_COLOURS)] for place, version in enumerate(versions)}
    columns = list(zip(answer.tokens, answer.versions, strict=True))
    table = Table(f"answer to {answer.prompt}", box=SIMPLE_HEAD)
    for token, version in columns:
        table.add_column(Text(_letter(token), f"bold {colour[version]}"), justify="right")
    table.add_row("by policy version", *(Text(str(version), colour[version]) for _, version in columns))
    return table


def comparison(asynchronous: Journal, synchronous: Journal) -> Table:
    """Show the two runs side by side."""
    runs = asynchronous, synchronous
    table = Table("", box=SIMPLE_HEAD)
    for journal in runs:
        table.add_column(journal.name, justify="right")
    if any(one.workers for one in runs):
        table.add_row("played by workers", *(str(len(one.workers)) for one in runs))
        table.add_row("answers that each played", *map(_shares, runs))
        table.add_row("workers that died", *(str(one.died) for one in runs))
        table.add_row("groups played again for that", *(f"{one.ledger.lost:,}" for one in runs))
    table.add_row("wall time", *(f"{one.seconds:.1f} s" for one in runs), style="bold")
    table.add_row("answers trained on", *(f"{one.samples:,}" for one in runs))
    table.add_row(f"mean reward {SOLVED} after", *map(_solved, runs))
    table.add_row("mean reward at the end", *(f"{one.steps[-1].reward:.2f}" for one in runs))
    table.add_row("all right, untrained", *(_exact(one.before) for one in runs))
    table.add_row("all right, trained", *(_exact(one.after) for one in runs))
    table.add_row("trainer waited", *(f"{one.idle:.0%} of the time" for one in runs))
    table.add_row("staleness, bound", *(str(one.max_staleness) for one in runs))
    table.add_row("staleness, most", *(str(max(step.max_staleness for step in one.steps)) for one in runs))
    table.add_row("staleness, mean", *(f"{one.mean_staleness:.2f}" for one in runs))
    table.add_row("tokens trained on over the bound", *(f"{one.over:,}" for one in runs))
    table.add_row("tokens too old, so masked", *(_share(one.masked, one.tokens) for one in runs))
    table.add_row("groups too old, so dropped", *(f"{one.ledger.stale:,}" for one in runs))
    table.add_row("slowest tenth trained on", *map(_slowest, runs))
    table.add_row("answers aborted by new weights", *(f"{one.aborted:,}" for one in runs))
    table.add_row("and resumed in mid-answer", *(f"{one.resumed:,}" for one in runs))
    return table


def books(*runs: Journal) -> Table:
    """Show that no rollout is lost: what was submitted is the sum of what is to the right of it."""
    table = Table("", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for place in _PLACES:
        table.add_column(place, justify="right")
    for journal in runs:
        table.add_row(journal.name, *(f"{getattr(journal.ledger, place):,}" for place in _PLACES))
    return table


def verdict(asynchronous: Journal, synchronous: Journal) -> str:
    """Say by how much one is faster, and what that is worth."""
    ratio = synchronous.seconds / asynchronous.seconds
    few = "" if len(asynchronous.steps) >= _ENOUGH_STEPS else "These are too few steps to learn the task.\n"
    return f"""\
{few}Synchronously it took {synchronous.seconds:.1f} s, asynchronously {asynchronous.seconds:.1f} s: \
[bold]{ratio:.1f} x as fast[/].
The learning is real, the time that an answer takes is not: the server waits
16 ms a token at the median, up to 8 times as long for some requests (lognormal,
sigma 0.8), and has 128 slots. These figures were chosen. Others give another
ratio; this one says what waiting for the slowest costs here, and no more."""


def _judged(answer: Answer) -> Text:
    return Text("".join(map(_letter, answer.tokens)), "green" if answer.exact else "red")


def _letter(token: int) -> str:
    return "<end>" if token == policy.END else policy.decode([token])


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _solved(journal: Journal) -> str:
    return "not reached" if journal.solved_after is None else f"{journal.solved_after:.1f} s"


def _exact(answers: Sequence[Answer]) -> str:
    return f"{sum(answer.exact for answer in answers)} of {len(answers)}"


def _slowest(journal: Journal) -> str:
    t10 = journal.report.t10 if journal.report else None
    return "too few to tell" if t10 is None else f"{t10:.0%} of the average"


def _shares(journal: Journal) -> str:
    return " + ".join(f"{worker.ended:,}" for worker in journal.workers)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(1, whole):.1%})"
