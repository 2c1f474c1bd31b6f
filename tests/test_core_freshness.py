"""How old a trajectory is, and what of it is trained on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from areal_core._executor.freshness import UNKNOWN, Ages, ages_of, masked, with_mask

pytestmark = pytest.mark.any_loop


def arrays(**rows: list[int]) -> dict[str, Any]:
    return {name: np.array([row]) for name, row in rows.items()}


@pytest.mark.parametrize(
    ("trajectory", "ages"),
    [
        ({}, UNKNOWN),
        (arrays(loss_mask=[0, 1, 1]), Ages(trained=2)),
        (arrays(versions=[-1, 0, 3]), Ages(0, 3, 2)),
        (arrays(versions=[-1, -1]), UNKNOWN),
        (arrays(versions=[1, 2, 3], loss_mask=[0, 1, 0]), Ages(2, 2, 1)),
        (arrays(versions=[1, 2], loss_mask=[0, 0]), UNKNOWN),
        (arrays(versions=[-1, 0, 2], loss_mask=[1, 1, 1]), Ages(0, 2, 2)),
    ],
)
def test_ages_are_those_of_the_tokens_that_are_trained_on(trajectory: dict[str, Any], ages: Ages) -> None:
    assert ages_of(trajectory) == ages


@pytest.mark.parametrize(
    ("trajectory", "error", "words"),
    [
        ({"loss_mask": [1]}, TypeError, "loss_mask is a list; give an array [batch, seqlen]"),
        ({"versions": [1]}, TypeError, "versions is a list; give an array [batch, seqlen]"),
        (
            {**arrays(versions=[1]), "loss_mask": (1,)},
            TypeError,
            "loss_mask is a tuple; give an array [batch, seqlen]",
        ),
        (
            arrays(versions=[1, 2], loss_mask=[1]),
            ValueError,
            "loss_mask has the shape (1, 1) and versions (1, 2); give both [batch, seqlen]",
        ),
    ],
)
def test_arrays_that_cannot_tell_are_refused(
    trajectory: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        ages_of(trajectory)


def test_versions_say_which_tokens_are_trained_on_where_no_mask_does() -> None:
    made = with_mask(arrays(versions=[-1, 0, 3]))["loss_mask"]
    assert made.tolist() == [[0, 1, 1]] and made.dtype.kind == "i"
    for complete in ({}, arrays(loss_mask=[1]), arrays(versions=[1], loss_mask=[0])):
        assert with_mask(complete) is complete
    with pytest.raises(TypeError, match="versions is a list"):
        with_mask({"versions": [1]})


class Tensor(np.ndarray[Any, Any]):
    """An array that is copied as torch's are."""

    copy = None  # type: ignore[assignment]

    def clone(self) -> Any:
        return np.array(self)


@pytest.mark.parametrize("kind", [np.ndarray, Tensor])
def test_too_old_tokens_are_masked_in_a_copy(kind: type[Any]) -> None:
    mask = np.array([[1, 1, 1, 1]]).view(kind)
    versions = np.array([[-1, 2, 3, 4]])
    result, ages = masked({"versions": versions, "loss_mask": mask, "other": 1}, 3)
    assert result["loss_mask"].tolist() == [[1, 0, 1, 1]] and result["other"] == 1
    assert ages == Ages(3, 4, 2)
    assert mask.tolist() == [[1, 1, 1, 1]]
