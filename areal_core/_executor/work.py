"""What callers give: workflows, filters, data; made into what the core takes, or refused."""

from __future__ import annotations

import importlib
import inspect
from reprlib import repr as short
from typing import Any

from areal_core._agents.workflow import Agent, AgentWorkflow, is_agent
from areal_core._checks import check_flag, check_integer, check_mapping
from areal_core._executor.rollout import Accept, Plan
from areal_core.config import InferenceEngineConfig
from areal_core.offload import Names, offloaded_as
from areal_core.types import RolloutWorkflow

Workflow = RolloutWorkflow | Agent | type[RolloutWorkflow] | type[Agent] | str
"""A workflow or an agent, the class of one, or an import path of either, ``"package.module:Class"``."""

_METHOD = "arun_episode"
_AGENTS_METHOD = "run"
_NAMES = Names("should_accept_fn", "accept_in", "accept_timeout")


class Planner:
    """Makes plans of what callers give, for an executor with this *config*. Any thread may call it.

    A caller who gives the same as the last time gets the same plan: most give one workflow thousands of
    times. But what is a class, or is named by a path, is looked for and made each time.
    """

    def __init__(self, config: InferenceEngineConfig) -> None:
        self._config = config
        self._last: tuple[Any, Any, Any, Any, Plan] | None = None

    def plan(self, workflow: Any, kwargs: Any, accept: Any, group_size: Any, is_eval: Any) -> Plan:
        """Return the plan that a caller's arguments make. Raises ImportError, TypeError, ValueError."""
        last = self._last
        if (
            last is not None
            and last[0] is workflow
            and last[1] is accept
            and last[2] is group_size
            and last[3] is is_eval
            and not kwargs
        ):
            return last[4]
        plan = Plan(
            make_workflow(workflow, kwargs),
            make_accept(self._config, accept),
            check_integer("group_size", group_size, least=1),
            self._config.on_member_failure == "keep_rest",
            check_flag("is_eval", is_eval),
        )
        if not (isinstance(workflow, str | type) or isinstance(accept, str)):
            self._last = workflow, accept, group_size, is_eval, plan
        return plan

    def forget(self) -> None:
        """Keep no caller's workflow any longer."""
        self._last = None


def make_workflow(workflow: Any, kwargs: Any) -> RolloutWorkflow:
    """Return the workflow that *workflow* is, makes with *kwargs*, or names; for an agent, what plays it.

    Raises ImportError, TypeError, ValueError.
    """
    named = workflow
    if isinstance(workflow, str):
        workflow = find(workflow)
    if inspect.isclass(workflow):
        if not any(callable(getattr(workflow, method, None)) for method in (_METHOD, _AGENTS_METHOD)):
            raise TypeError(f"workflow={short(named)} has no {_METHOD}(engine, data); give a RolloutWorkflow")
        return _as_workflow(workflow(**check_mapping("workflow_kwargs", kwargs or {})), named)
    made = _as_workflow(workflow, named)
    if kwargs:
        raise ValueError(
            f"workflow_kwargs={short(kwargs)} are for a class, and workflow={short(named)} is made already; "
            "give its class, or no workflow_kwargs"
        )
    return made


def _as_workflow(made: Any, named: Any) -> RolloutWorkflow:
    """Return *made*, or what plays it if it is an agent. Raises TypeError."""
    if callable(getattr(made, _METHOD, None)):
        workflow: RolloutWorkflow = made
        return workflow
    if is_agent(made):
        return AgentWorkflow(made)
    raise TypeError(
        f"workflow={short(named)} has no {_METHOD}(engine, data); give a RolloutWorkflow, its class with "
        "workflow_kwargs, an import path such as 'package.module:Class', or an agent, which has "
        f"{_AGENTS_METHOD}(data, *, base_url, api_key, http_client)"
    )


def make_accept(config: InferenceEngineConfig, accept: Any) -> Accept | None:
    """Return the filter that *accept* is or names, to be awaited.

    Raises ImportError, TypeError, ValueError.
    """
    if accept is None:
        return None
    if isinstance(accept, str):
        accept = find(accept)
    if not callable(accept):
        raise TypeError(
            f"should_accept_fn={short(accept)} cannot be called; give a function of a trajectory, or None"
        )
    return offloaded_as(_NAMES, accept, config.accept_in, config.accept_timeout)


def find(path: str) -> Any:
    """Import what *path* names, ``"package.module:name"`` or ``"package.module.name"``.

    Raises ValueError for what is no such path, ImportError for what is not there.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if (
        not module
        or not name
        or not all(part.isidentifier() for part in (*module.split("."), *name.split(".")))
    ):
        raise ValueError(f"{path!r} is no import path; give 'package.module:name'")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ImportError(f"there is no {name!r} in {module!r}, which {path!r} names") from None
    return found
