"""What is to be sent to a worker: gathered until it goes, then put into orders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from areal_core._distributed.leases import Ended, Order, Parcel
from areal_core._distributed.wire import MOST_PLANS, Orders, text_of
from areal_core._executor.rollout import Plan


class Letter(Struct, eq=False):
    """What was said to one worker since it was last sent anything."""

    give: list[Order] = []
    cancel: list[tuple[int, int]] = []
    forget: list[int] = []
    takes_back: bool = False
    plans: set[int] = set()
    """Those that it has: they stay."""


class Clerk:
    """Puts letters into orders. *dumps* pickles plans, once for each worker, and what is to be played."""

    def __init__(self, dumps: Callable[[Any], bytes]) -> None:
        self._dumps = dumps
        self._plans: OrderedDict[tuple[Any, ...], tuple[int, Plan]] = OrderedDict()
        self._plans_so_far = 0

    def fill_in(self, orders: Orders, letter: Letter) -> list[Ended]:
        """Move what *letter* says to *orders*; return the ends of what cannot be sent."""
        orders.plans, orders.give = {}, []
        orders.cancel, orders.forget, orders.takes_back = letter.cancel, letter.forget, letter.takes_back
        give, letter.give = letter.give, []
        letter.cancel, letter.forget, letter.takes_back = [], [], False
        unsendable: list[Ended] = []
        for order in give:
            places = [episode.sample_idx for episode in order.episodes]
            try:
                head = self._head(order, letter, orders) if order.is_first else None
                orders.give.append((order.parcel.number, head, places))
            except BaseException as error:  # of the user's code, which may do anything
                unsendable += [_unsendable(order.parcel, place, error) for place in places]
        return unsendable

    def _head(self, order: Order, letter: Letter, orders: Orders) -> bytes:
        rollout = order.parcel.rollout
        number, plan = self._plan_of(rollout.plan)
        if number not in letter.plans:
            orders.plans[number] = self._dumps(plan)
            letter.plans = {one for one in letter.plans if one > number - MOST_PLANS} | {number}
        return self._dumps((number, rollout.task_id, rollout.data_id, rollout.start_version, rollout.data))

    def _plan_of(self, plan: Plan) -> tuple[int, Plan]:
        """Return the number of *plan*, or of one that is the same, and that one: it stays what it is."""
        key = (id(plan.workflow), id(plan.accept), plan.group_size, plan.keep_rest, plan.is_eval)
        known = self._plans.get(key)
        if known is not None:
            return known
        self._plans_so_far += 1
        self._plans[key] = made = (self._plans_so_far, plan)
        while len(self._plans) > MOST_PLANS:
            self._plans.popitem(last=False)
        return made


def _unsendable(parcel: Parcel, place: int, error: BaseException) -> Ended:
    plan = parcel.rollout.plan
    told = TypeError(
        f"rollout {parcel.rollout.task_id} cannot be sent to a worker: its data, or "
        f"{type(plan.workflow).__qualname__} with its filter, cannot be pickled ({text_of(error)}); keep "
        "what belongs to this process out of them, and make it where the workflow runs"
    )
    return Ended(parcel.number, place, None, told, False, 0.0, (0, None, 0.0, 0.0, 0.0))
