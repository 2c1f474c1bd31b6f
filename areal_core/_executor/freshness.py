"""How old a trajectory is, and what of it may still be trained on."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from areal_core._executor.rules import OnStale


class Ages(Struct, frozen=True):
    """The versions of the tokens that are trained on.

    A token is when its ``loss_mask`` is not 0; without one, when its version is not negative.
    """

    oldest: int | None = None
    """None: the trajectory has no ``versions``, or no such token."""
    newest: int | None = None
    trained: int = 0
    """How many such tokens there are."""


UNKNOWN = Ages()


def ages_of(trajectory: dict[str, Any]) -> Ages:
    """Return how old *trajectory* is. Raises TypeError and ValueError for ``versions`` that cannot tell."""
    versions, mask = trajectory.get("versions"), trajectory.get("loss_mask")
    if versions is None:
        return Ages(trained=0 if mask is None else int((_array("loss_mask", mask) != 0).sum()))
    _array("versions", versions)
    if mask is None:
        return _ages_of(versions[versions >= 0])
    if _array("loss_mask", mask).shape != versions.shape:
        raise ValueError(
            f"loss_mask has the shape {tuple(mask.shape)} and versions {tuple(versions.shape)}; "
            "give both [batch, seqlen]"
        )
    ages = _ages_of(chosen := versions[mask != 0])
    # Seldom: a token of a prompt is not trained on.
    return ages if ages.oldest is None or ages.oldest >= 0 else _ages_of(chosen[chosen >= 0])


def _ages_of(chosen: Any) -> Ages:
    if not len(chosen):
        return UNKNOWN
    # Where they are and not what they are: of some thousand numpy finds it in a third of the time.
    return Ages(int(chosen[chosen.argmin()]), int(chosen[chosen.argmax()]), len(chosen))


def is_too_old(ages: Ages, start_version: int, on_stale: OnStale, least: int) -> bool:
    """Return whether nothing of it may be trained on, where versions from *least* on may."""
    if on_stale == "keep":
        return False
    if on_stale == "mask" and ages.newest is not None:
        return ages.newest < least
    return (start_version if ages.oldest is None else ages.oldest) < least


def with_mask(trajectory: dict[str, Any]) -> dict[str, Any]:
    """Return *trajectory* with a ``loss_mask``, if its ``versions`` can say which tokens are trained on.

    All of a batch have to have the same keys, whichever of them has to be masked.
    """
    versions = trajectory.get("versions")
    if versions is None or trajectory.get("loss_mask") is not None:
        return trajectory
    return {**trajectory, "loss_mask": (_array("versions", versions) >= 0) * 1}


def masked(trajectory: dict[str, Any], least: int) -> tuple[dict[str, Any], Ages]:
    """Return *trajectory* with a 0 in its mask for tokens older than version *least*, and its ages then.

    No policy made those of a negative version, so they have no age. It has a mask; see `with_mask`. The
    arrays that were given stay as they are.
    """
    mask = trajectory["loss_mask"]
    kept = mask.clone() if hasattr(mask, "clone") else mask.copy()  # a tensor, or an array
    versions = trajectory["versions"]
    kept[(versions >= 0) & (versions < least)] = 0
    result = {**trajectory, "loss_mask": kept}
    return result, ages_of(result)


def _array(name: str, value: Any) -> Any:
    if not hasattr(value, "shape"):
        raise TypeError(f"{name} is a {type(value).__name__}; give an array [batch, seqlen]")
    return value
