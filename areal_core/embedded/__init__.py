"""A real inference server that needs no GPU: develop and test workflows against it.

```python
from areal_core.embedded import EmbeddedServer

with EmbeddedServer(ms_per_token=1) as server:
    ...  # POST to f"{server.url}/generate" what you would send to SGLang
    print(server.stats())
```

It listens on a real port, in a process of its own, and speaks SGLang's dialect over real HTTP: replies
take as long as their tokens would, some requests are long stragglers, and a client that hangs up
cancels its generation. What it says is made up, and repeats: equal prompts get equal answers.

The same server runs from a shell as ``python -m areal_core.embedded``.

Where things are: the options in ``_options``, the child process in ``_server`` and ``_child``; in the
child, the command in ``__main__``, the loop in ``_serve``, HTTP in ``_app``, SGLang's words in
``_sglang``, running requests in ``_generations``, tokens in ``_tokens``, speed in ``_pace``.
"""

from __future__ import annotations

from ._options import ServerOptions
from ._server import EmbeddedServer
from ._stats import ServerStats

__all__ = ["EmbeddedServer", "ServerOptions", "ServerStats"]
