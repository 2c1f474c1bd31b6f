"""Which model an option asks for, and the weights it starts with."""

from __future__ import annotations

from ._letters import Letters
from ._model import Model
from ._options import ServerOptions
from ._weights import Weights


def model_of(options: ServerOptions) -> tuple[Model, Weights]:
    """Return the model and the weights that a server with *options* starts with.

    Raises WeightsError for a file without weights, ModuleNotFoundError without what the mode needs.
    """
    model = _model(options.mode)
    version, content = model.start() if options.weights is None else model.load(options.weights)
    return model, Weights(version, content=content)


def _model(mode: str) -> Model:
    if mode == "policy":
        from ._policy_model import PolicyModel  # NumPy: only who asks for it needs it

        return PolicyModel()
    return Letters(versioned=mode == "test")
