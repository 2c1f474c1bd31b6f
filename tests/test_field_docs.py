"""Whether `help()` says of the fields of public dataclasses what stands under them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import pydoc
from itertools import pairwise
from typing import Any

import pytest

from areal_core._field_docs import documented
from areal_core.config import InferenceEngineConfig
from areal_core.remote_inf_engine import EngineStats, ServerStats
from areal_core.types import GenerationHyperparameters, ModelRequest, ModelResponse
from children import RunScript

pytestmark = pytest.mark.any_loop

CLASSES = (
    InferenceEngineConfig,
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    EngineStats,
    ServerStats,
)


@pytest.mark.parametrize("cls", CLASSES, ids=[one.__name__ for one in CLASSES])
def test_help_has_all_that_stands_under_fields(cls: type[Any]) -> None:
    shown = pydoc.plain(pydoc.render_doc(cls))
    lines = inspect.getsource(cls).split("\n")
    texts = [
        line.strip().strip('"')
        for before, line in pairwise(lines)
        if line.startswith('    """') and not before.lstrip().startswith(("class", "def", "async def"))
    ]
    assert len(texts) > 3
    for text in texts:
        assert text in shown


def test_help_of_the_config_says_of_each_setting_its_default_and_what_it_is() -> None:
    shown = pydoc.plain(pydoc.render_doc(InferenceEngineConfig))
    for field in dataclasses.fields(InferenceEngineConfig):
        assert f" |  {field.name}: {field.type} = {field.default!r}\n |      " in shown
    assert " |  max_requeues: int = 1\n |      How often a rollout that was too old is run again." in shown
    assert " |      ``loss_mask`` is 0, and" in shown  # from the second line of a text


def test_the_docstring_begins_with_what_it_was_and_instances_show_it_too() -> None:
    text = InferenceEngineConfig.__doc__
    assert text is not None
    assert text.startswith("Say how rollouts are generated. Raises ValueError and TypeError for what cannot")
    assert InferenceEngineConfig().__doc__ == text


def test_the_class_is_as_good_as_before() -> None:
    config = InferenceEngineConfig(model="m")
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert dataclasses.replace(config, model=None) == InferenceEngineConfig()


def test_where_there_is_no_source_the_docstring_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @documented
    @dataclasses.dataclass
    class Nameless:
        """Say something."""

        one: int = 1
        """One."""

    def gone(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", gone)
    assert Nameless.__doc__ == "Say something."
    monkeypatch.undo()

    @documented
    @dataclasses.dataclass
    class Inner:
        """Say something."""

        two: int
        """Two."""
        three: int = 3
        four: list[int] = dataclasses.field(default_factory=list)
        """Four."""

    assert Inner.__doc__ == "Say something.\n\ntwo: int\n    Two.\n\nfour: list[int]\n    Four."


def test_it_costs_nothing_before_somebody_asks(run_script: RunScript) -> None:
    source = """
        import linecache

        from areal_core.config import InferenceEngineConfig

        read = [path for path in linecache.cache if path.endswith("config.py")]
        print(read, InferenceEngineConfig.__doc__)
    """
    said = run_script(source, flags=("-W", "error")).stdout
    assert said.startswith("[] Say how")
    assert "max_requeues" in said
