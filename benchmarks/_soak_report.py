"""What a soak run says of itself at its end: one table, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from _soak_balance import DESCRIPTORS_MORE, RESIDENT_MORE, THREADS_MORE
from _soak_books import STATUSES
from _soak_plan import FAULTS, Plan

_WIDTH = 24
_LINE = 108


def table(
    plan: Plan, result: Mapping[str, Any], struck: Mapping[str, int], kills: Sequence[int], signals: int
) -> Iterator[str]:
    """Yield the lines of the report of a run that came to its end."""
    rows = [
        ("seed", f"{plan.seed}, on_stale={plan.on_stale}"),
        ("duration", f"{result['seconds']:.1f} s"),
        ("training rollouts", _endings(result["training"])),
        ("evaluation rollouts", _endings(result["evaluation"])),
        ("faults", ", ".join(f"{kind} {struck.get(kind, 0)}" for kind in FAULTS)),
        ("servers killed", f"{', '.join(map(str, kills))} times, each started again on its port"),
        (
            "Ctrl-C",
            (
                f"{signals} sent; {result['raised']} raised, {result['in_library']} of these in the library, "
                f"{result['ignored']} came while the run kept its books or wrote weights, the rest together "
                "with others"
            ),
        ),
        ("executor started", f"{result['lives']} times"),
        ("trainer", _counts(result["counts"])),
        ("told to the trainer", _counts(result["refusals"]) or "no error"),
        ("loop blocked", f"named {result['blocks_named']} times"),
        ("log", _counts(result["log"])),
        ("policy version", f"{result['version']} at the end"),
        ("staleness", _staleness(result)),
        *_held(result),
    ]
    for name, text in rows:
        yield from _wrapped(name, text)


def verdict(complaints: Sequence[str]) -> Iterator[str]:
    """Yield what is off, or that nothing is."""
    if not complaints:
        yield "BALANCED: every rollout came to one end, none was lost or doubled, none was too old"
        return
    yield f"OFF, {len(complaints)} complaints:"
    for complaint in complaints:
        yield f"  - {complaint}"


def progress(line: Mapping[str, Any], struck: Mapping[str, int], kills: int, signals: int) -> str:
    """Say in a line how far a run is."""
    return (
        f"{line['seconds']:5.0f} s  version {line['version']}, {line['ended']} rollouts ended, "
        f"{sum(struck.values())} faults, {kills} kills, {signals} Ctrl-Cs, started {line['lives']} times"
    )


def _endings(ledger: Mapping[str, int]) -> str:
    kinds = ", ".join(f"{status} {ledger[status]}" for status in STATUSES)
    return (
        f"{ledger['submitted']}: {kinds}; run again {ledger['requeued']}; "
        f"collected {ledger['collected']}, discarded {ledger['discarded']}, left {ledger['finished']}"
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _staleness(result: Mapping[str, Any]) -> str:
    told = result["staleness"]
    return (
        f"bound {result['bound']}, greatest {result['oldest']}, by the report {told['staleness_max']} and "
        f"{told['staleness_mean']:.2f} in the mean; {result['judged']} tokens judged, "
        f"{told['tokens_masked']} masked"
    )


def _held(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    quarter, end = result["quarter"] or {}, result["end"]
    limits = {"descriptors": DESCRIPTORS_MORE, "threads": THREADS_MORE}
    for name, most in limits.items():
        yield name, f"{quarter.get(name)} after a quarter, {end[name]} at the end; {most} more are allowed"
    was, now = quarter.get("resident", 0) / 2**20, end["resident"] / 2**20
    most_mb = RESIDENT_MORE / 2**20
    text = f"{was:.1f} MB after a quarter, {now:.1f} MB at the end; {most_mb:.0f} MB more are allowed"
    yield "resident set", text


def _wrapped(name: str, text: str) -> Iterator[str]:
    line = ""
    for word in text.split(" "):
        if line and len(line) + len(word) >= _LINE - _WIDTH:
            yield f"{name:<{_WIDTH}}{line}"
            name, line = "", ""
        line = f"{line} {word}" if line else word
    yield f"{name:<{_WIDTH}}{line}"
