"""Many things pickled by one pickler, each as if by its own."""

from __future__ import annotations

import io
import pickle
from types import ModuleType
from typing import Any

import pytest

from areal_core._distributed.pickles import Pickles

pytestmark = pytest.mark.any_loop


class _Odd:
    """Cannot be pickled, and finds out late."""

    def __reduce__(self) -> Any:
        raise ValueError("no")


class _Made:
    """How many picklers there were."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, file: io.BytesIO) -> pickle.Pickler:
        self.count += 1
        return pickle.Pickler(file)


SHARED = ["the same list"]


def test_each_is_pickled_as_if_nothing_had_been_before_it() -> None:
    dumps = Pickles(made := _Made())
    for thing in ((1, SHARED), (2, SHARED, SHARED), {"of": SHARED}, b"x" * 1000, ()):
        data = dumps(thing)
        assert data == pickle.dumps(thing)
        assert pickle.loads(data) == thing
    assert made.count == 1


def test_what_fails_leaves_nothing_behind() -> None:
    dumps = Pickles(_Made())
    dumps((1, SHARED))
    with pytest.raises(ValueError, match="no"):
        dumps(["begun", SHARED, _Odd()])
    assert dumps((2, SHARED)) == pickle.dumps((2, SHARED))


def test_what_is_large_is_not_kept() -> None:
    dumps = Pickles(made := _Made())
    dumps(bytes(1 << 20))
    assert pickle.loads(dumps(3)) == 3
    assert made.count == 2


def test_a_function_comes_with_the_globals_of_its_own_module() -> None:
    cloudpickle, made = pytest.importorskip("ray.cloudpickle"), list[Any]()

    def make(file: io.BytesIO) -> pickle.Pickler:
        made.append(cloudpickle.Pickler(file))
        return made[-1]  # type: ignore[no-any-return]

    dumps = Pickles(make)
    for name in ("one", "two"):
        module = ModuleType(name)
        exec("def f(): return __name__", vars(module))
        assert pickle.loads(dumps(module.f))() == name
        del module  # its globals' address may be that of the next one's
    assert len(made) == 2


def test_what_pickles_something_itself_is_pickled_as_ever() -> None:
    dumps = Pickles(_Made())
    dumps(1)  # there is a pickler by now
    outer = pickle.loads(dumps(_Nested(dumps)))
    assert (outer.inner, pickle.loads(outer.inner)) == (pickle.dumps(SHARED), SHARED)
    assert pickle.loads(dumps((2, SHARED))) == (2, SHARED)


class _Nested:
    def __init__(self, dumps: Pickles) -> None:
        self._dumps = dumps
        self.inner = b""

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self._dumps(SHARED)}
