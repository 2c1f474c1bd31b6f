"""Why no more rollouts start, and what callers wait for: the core's figures, put into words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from areal_core._executor.core import Core
from areal_core._executor.explanation import CapacityExplanation, Reason
from areal_core._executor.requests import Request, Want
from areal_core._executor.rules import Rules


def capacity_of(core: Core, rules: Rules, left: tuple[int, int]) -> CapacityExplanation:
    """Return what the core itself knows of why no more starts.

    So many rollouts of training, and of evaluation, are *left* on the desk, where it has not seen them.
    """
    budget, scheduler = core.budget, core.scheduler
    return CapacityExplanation(
        reasons=tuple(_reasons(core, rules, any(left))),
        version=budget.version,
        pending=scheduler.training.pending + left[0],
        eval_pending=scheduler.evaluation.pending + left[1],
        running=len(scheduler.running),
        samples=budget.samples,
        eval_samples=budget.eval_samples,
        most_samples=rules.most_samples,
        most_started=rules.most_started,
        units_running=budget.running,
        units_waiting=budget.waiting,
        units_consumed=budget.consumed,
        most_units=rules.most_units,
    )


def _reasons(core: Core, rules: Rules, are_some_left: bool) -> Iterator[Reason]:
    scheduler, failures = core.scheduler, core.too_many_failures()
    if core.has_ended:
        yield Reason("ended", "the runner has ended; initialize() starts it again")
    if scheduler.is_paused:
        ago = f"{core.paused_for_s():.1f} s ago"
        yield Reason("paused", f"pause() was called {ago}; resume() starts what waits")
    if failures is not None:
        yield Reason("failures", str(failures))
    lines = (scheduler.training, scheduler.evaluation)
    if not are_some_left and not any(line.pending or line.begun for line in lines):
        yield Reason("nothing pending", "all that was submitted has started")
    yield from _slots(core, rules)
    if core.budget.units <= 0:
        yield Reason("staleness", _staleness(core, rules))


def _slots(core: Core, rules: Rules) -> Iterator[Reason]:
    budget, most = core.budget, rules.most_samples
    if budget.samples + budget.eval_samples >= rules.most_started:
        text = f"{rules.most_started} samples are under way, as many as queue_size allows; one has to end"
        yield Reason("queue", text)
    for name, taken in (("training", budget.samples), ("evaluation", budget.eval_samples)):
        if most is not None and taken >= most:
            limit = f"as many as max_concurrent_rollouts={most} allows"
            yield Reason("concurrency", f"{taken} samples of {name} run, {limit}; one has to end")


def _staleness(core: Core, rules: Rules) -> str:
    budget = core.budget
    remedies = [
        *(["let what runs end"] if budget.running else []),
        *(["take what has ended (prepare_batch, wait)"] if budget.waiting else []),
        *(["raise the version; on_version_changed() tells of it"] if budget.consumed else []),
    ]
    return (
        f"all of the budget of version {budget.version} is in use, (max_head_offpolicyness "
        f"{rules.max_staleness} + 1) x consumer_batch_size {rules.batch} = {rules.most_units} trajectories: "
        f"{budget.running} run, {budget.waiting} have ended and were not taken, {budget.consumed} were "
        f"delivered at this version; {', or '.join(remedies)}"
    )


def wish_of(request: Request) -> str:
    """Say what the caller who made *request* waits for."""
    kind = " of evaluation" if request.is_eval else ""
    if request.want is Want.BATCH:
        held = "" if request.held_until is None else ", and are held back for stragglers (straggler_wait)"
        return f"a caller waits for a batch of {request.count}: {request.there} are there{held}"
    if request.want is Want.CLAIMED:
        ids = ", ".join(str(one.task_id) for one in islice(request.claim.rollouts, 8))
        rest = max(0, len(request.claim.rollouts) - 8)
        claimed = f"{ids} and {rest} more" if rest else ids
        return f"a caller waits for the rollouts {claimed}{kind}: {request.there} have ended"
    return f"a caller waits for any {request.count} rollouts{kind} to end: {request.there} have"
