"""The generations of one request, and who listens to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from areal_core.embedded._generating.generation import Generation


class Started:
    """Tell one listener what happens to *generations*; ``Generations.start`` makes it."""

    def __init__(self, generations: Sequence[Generation], streamed: bool) -> None:
        self.generations = generations
        self.streamed = streamed
        """Whether every token is news; else only the end is."""
        self._left = len(generations)
        self._news: dict[Generation, None] = {}
        self._told: asyncio.Future[None] | None = None

    async def ended(self) -> Sequence[Generation]:
        """Wait until all have ended; return them."""
        while self._left:
            await self._next_news()
            self._news.clear()
        return self.generations

    async def __aiter__(self) -> AsyncIterator[Generation]:
        """Yield a generation each time it has more tokens or has ended, until all have ended.

        What happens while the listener is busy comes as one piece of news for each generation.
        """
        left = set(self.generations)
        while left:
            await self._next_news()
            while self._news:
                generation = next(iter(self._news))
                del self._news[generation]
                if generation.finish is not None:
                    left.discard(generation)
                yield generation

    def tell(self, generation: Generation) -> None:
        """Pass on that *generation* has more tokens or has ended."""
        self._left -= generation.finish is not None
        self._news[generation] = None
        if self._told is not None and not self._told.done():
            self._told.set_result(None)

    async def _next_news(self) -> None:
        if not self._news:
            self._told = asyncio.get_running_loop().create_future()
            try:
                await self._told
            finally:
                self._told = None
