"""A real inference server that needs no GPU: develop and test workflows against it.

```python
from areal_core.embedded import EmbeddedServer

with EmbeddedServer(ms_per_token=1) as server:
    ...  # POST to f"{server.url}/generate" what you would send to SGLang, or
    ...  # to f"{server.url}/v1/chat/completions" what you would send to OpenAI
    print(server.stats())
```

It listens on a real port, in a process of its own, and speaks the dialects of SGLang, vLLM and OpenAI, all
at once, over real HTTP: replies take as long as their tokens would, some requests are long stragglers,
generations can be streamed, aborted and paused, and a client that hangs up cancels its own. It can be
told to misbehave: `EmbeddedServer.faults`. In tests, pytest has it as the fixtures of ``pytest_plugin``.

What makes the tokens is the option ``mode``. In "text" they are letters that repeat: equal prompts get
equal answers. In "test" each is also a function of the version of the weights: `token_of` says which. In
"policy" a small transformer samples them, from the weights in a file.

The same server runs from a shell as ``python -m areal_core.embedded``.

Where things are: the options in ``_options``, the words for faults in ``_fault_script``, the child process
in ``_server`` and ``_child``. In the child, the command in ``__main__``, the loop in ``_serve``, HTTP in
``_app``; what clients say and are told in ``_dialects``, what runs in ``_generating``, what makes the tokens
in ``_models``, what goes wrong in ``_faults``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from areal_core._lazy import lazy

__all__ = [
    "ChatTokenizer",
    "EmbeddedServer",
    "ServerOptions",
    "ServerStats",
    "logprob_of",
    "token_of",
    "write_weights",
]

# On first use: every pytest of an environment with this library in it imports this package, for its plugin.
if TYPE_CHECKING:
    from areal_core.embedded._models.letters import logprob_of, token_of
    from areal_core.embedded._models.weights import write_weights
    from areal_core.embedded._options import ServerOptions
    from areal_core.embedded._server import EmbeddedServer
    from areal_core.embedded._stats import ServerStats
    from areal_core.embedded.chat_tokenizer import ChatTokenizer
else:  # a type checker that saw __getattr__ would let every misspelt name pass
    __getattr__, __dir__ = lazy(
        __name__,
        globals(),
        {
            "ChatTokenizer": "chat_tokenizer",
            "EmbeddedServer": "_server",
            "ServerOptions": "_options",
            "ServerStats": "_stats",
            "logprob_of": "_models.letters",
            "token_of": "_models.letters",
            "write_weights": "_models.weights",
        },
    )
