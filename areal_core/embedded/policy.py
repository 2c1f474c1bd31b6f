"""A policy small enough for one core: a causal transformer of one layer, in NumPy.

It reads and writes strings of digits. This module has what a server and a trainer share: the tokens, the
forward pass, and the file of weights. A trainer adds the backward pass, from the `Activations` of `run`:

```text
x = embedding[token] + position[place]
x = x + softmax(causal(x Wq (x Wk)' / sqrt(64))) x Wv         one head, no output projection
x = x + relu(x W1) W2                                         128 wide
logits = x U                                                  no biases, no normalization: 32 384 numbers
```

A prompt is digits and a separator, ``31415=``. Tokens are placed so that the first separator is at place
6, after as much padding as that takes: where a token stands is a function of the tokens alone, so that a
generation may be cut off anywhere and resumed from the tokens it had.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from areal_core.embedded._models.weights import WeightsError, replacing

Floats: TypeAlias = NDArray[np.floating[Any]]
"""32 bits wide, unless the parameters are wider."""
Tokens: TypeAlias = NDArray[np.int64]
Parameters: TypeAlias = Mapping[str, Floats]

PAD, SEPARATOR, END = 10, 11, 12
PLACES = 32
"""The most tokens, padding included."""
_SEPARATOR_PLACE = 6
_TEXT = "0123456789_="
_WIDTH, _HIDDEN = 64, 128
# Places that were added later are drawn last: the other numbers of a seed stay what they were.
_FIRST_PLACES = 16

SHAPES: Mapping[str, tuple[int, int]] = {
    "embedding": (END + 1, _WIDTH),
    "position": (PLACES, _WIDTH),
    "query": (_WIDTH, _WIDTH),
    "key": (_WIDTH, _WIDTH),
    "value": (_WIDTH, _WIDTH),
    "mlp_in": (_WIDTH, _HIDDEN),
    "mlp_out": (_HIDDEN, _WIDTH),
    "unembedding": (_WIDTH, END + 1),
}
# Their standard deviations: small logits at first, so that everything is tried.
_SCALES = {
    "embedding": 0.5,
    "position": 0.5,
    "mlp_out": 0.5 * _HIDDEN**-0.5,
    "unembedding": 0.1 * _WIDTH**-0.5,
}


class Activations(NamedTuple):
    """What `run` computed on the way, for batches of B rows of T tokens."""

    embedded: Floats
    """B, T, 64: the tokens and where they stand."""
    query: Floats
    key: Floats
    value: Floats
    attention: Floats
    """B, T, T: rows sum to 1."""
    attended: Floats
    """B, T, 64: after the attention."""
    hidden: Floats
    """B, T, 128: after the relu."""
    output: Floats
    """B, T, 64: what is unembedded."""
    logits: Floats
    """B, T, 13: of the token that follows each."""


def initial(seed: int = 0) -> dict[str, Floats]:
    """Return parameters that know nothing yet."""
    draw = np.random.default_rng(seed)
    shapes = {**SHAPES, "position": (_FIRST_PLACES, _WIDTH)}
    parameters = {
        name: _drawn(draw, shape, _SCALES.get(name, shape[0] ** -0.5)) for name, shape in shapes.items()
    }
    others = _drawn(draw, (PLACES - _FIRST_PLACES, _WIDTH), _SCALES["position"])
    return {**parameters, "position": np.concatenate([parameters["position"], others])}


def _drawn(draw: np.random.Generator, shape: tuple[int, int], scale: float) -> Floats:
    return (draw.standard_normal(shape) * scale).astype(np.float32)


def encode(text: str) -> list[int]:
    """Return the tokens of *text*. Raises ValueError for a text that is not of digits, "=" and "_"."""
    return [_TEXT.index(letter) for letter in text]


def decode(tokens: Sequence[int]) -> str:
    """Return the text of *tokens*; the end has none."""
    return "".join(_TEXT[token] for token in tokens if token != END)


def place(tokens: Sequence[int]) -> list[int]:
    """Return *tokens* with the padding before them that they get: a function of the first of them."""
    first = tokens.index(SEPARATOR) if SEPARATOR in tokens else _SEPARATOR_PLACE
    return [PAD] * max(0, _SEPARATOR_PLACE - first) + list(tokens)


def run(parameters: Parameters, tokens: Tokens) -> Activations:
    """Run the policy on *tokens*, B rows of T, placed; what comes after a token changes nothing for it."""
    embedded = parameters["embedding"][tokens] + parameters["position"][: tokens.shape[1]]
    query, key, value = (embedded @ parameters[name] for name in ("query", "key", "value"))
    # A Python float: NumPy's own square root would make everything after it 64 bits wide.
    scores = query @ key.swapaxes(1, 2) * _WIDTH**-0.5
    later = np.triu(np.ones(scores.shape[1:], bool), 1)
    attention = softmax(np.where(later, -np.inf, scores))
    attended = embedded + attention @ value
    hidden = np.maximum(attended @ parameters["mlp_in"], 0)
    output = attended + hidden @ parameters["mlp_out"]
    logits = output @ parameters["unembedding"]
    return Activations(embedded, query, key, value, attention, attended, hidden, output, logits)


def next_logits(parameters: Parameters, prefixes: Sequence[Sequence[int]]) -> Floats:
    """Return the logits of the token that follows each of *prefixes*, a row for each."""
    rows = [place(prefix) for prefix in prefixes]
    tokens = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    last = [len(row) - 1 for row in rows]
    return np.asarray(run(parameters, tokens).logits[np.arange(len(rows)), last])


def softmax(scores: Floats) -> Floats:
    """Return the probabilities along the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def save(path: str | os.PathLike[str], parameters: Parameters, version: int) -> None:
    """Write *parameters* and their *version*; who reads *path* meanwhile finds the old file or the new."""
    arrays: dict[str, Any] = {"version": np.int64(version), **parameters}
    with replacing(path) as file:
        np.savez(file, **arrays)


def load(path: str | os.PathLike[str]) -> tuple[int, dict[str, Floats]]:
    """Return version and parameters from a file that `save` wrote.

    Raises WeightsError for any other file. Nothing in the file is executed.
    """
    try:
        # NumPy would not close a file that it opened and could not read.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("version", *SHAPES)}
    except OSError as error:
        raise WeightsError(f"cannot read the weights {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        raise WeightsError(f"the weights {str(path)!r} are no .npz that save() wrote") from None
    version = arrays.pop("version")
    for name, array in arrays.items():
        if array.shape != SHAPES[name] or array.dtype != np.float32 or not np.isfinite(array).all():
            raise WeightsError(
                f"in the weights {str(path)!r}, {name} is not {SHAPES[name]} finite 32-bit floats"
            )
    if version.shape != () or version.dtype != np.int64:
        raise WeightsError(f"in the weights {str(path)!r}, the version is not a 64-bit integer")
    return int(version), arrays
