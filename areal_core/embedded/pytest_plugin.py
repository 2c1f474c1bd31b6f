"""Fixtures for the tests of workflows: embedded servers that end with the test.

```python
def test_my_workflow(embedded_server):
    ...  # talk to embedded_server.url
    assert embedded_server.stats().generations == 1


def test_it_survives_a_busy_server(make_embedded_server):
    server = make_embedded_server(ms_per_token=5, fault=["status=503,every=3"])
    ...
```

Nothing needs to be imported or configured: pytest finds this module where areal_core is installed. It
loads it for every test run there, so it imports nothing before a test asks for a server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from areal_core.embedded import EmbeddedServer


class MakeEmbeddedServer(Protocol):
    """The type of the fixture ``make_embedded_server``."""

    def __call__(self, **options: Any) -> EmbeddedServer:
        """Start a server with the *options* of `EmbeddedServer`; it answers at once by default."""


@pytest.fixture
def make_embedded_server() -> Iterator[MakeEmbeddedServer]:
    """Start servers, with the options of `EmbeddedServer`, and stop them all after the test."""
    with ExitStack() as servers:

        def make(**options: Any) -> EmbeddedServer:
            from areal_core.embedded import EmbeddedServer

            return servers.enter_context(EmbeddedServer(**{"ms_per_token": 0, **options}))

        yield make


@pytest.fixture
def embedded_server(make_embedded_server: MakeEmbeddedServer) -> EmbeddedServer:
    """Start a server that answers at once, and stop it after the test."""
    return make_embedded_server()
