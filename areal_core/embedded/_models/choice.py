"""Which model an option asks for, and the weights it starts with."""

from __future__ import annotations

import os

from areal_core.embedded._models.letters import Letters
from areal_core.embedded._models.model import Model
from areal_core.embedded._models.weights import Weights
from areal_core.embedded._options import ServerOptions


def model_of(options: ServerOptions) -> tuple[Model, Weights]:
    """Return the model and the weights that a server with *options* starts with.

    Raises WeightsError for a file without weights.
    """
    model = _model(options.mode)
    version, content = model.start() if options.weights is None else model.load(options.weights)
    return model, Weights(version, content=content)


def _model(mode: str) -> Model:
    return _policy() if mode == "policy" else Letters(versioned=mode == "test")


def _policy() -> Model:
    # The matrices are small: threads would only get in each other's way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from areal_core.embedded._models.transformer import PolicyModel  # NumPy: the other modes do without

    return PolicyModel()
