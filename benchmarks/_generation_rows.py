"""The rows of a generation of 32 000 tokens with log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import _generation_figures as generations
from _canned import EVENTS, GROWING_EVENTS
from _generation_figures import Manner
from _scale import Scale
from _table import MILLISECONDS, Row, Unit, part, plain, ratio

KEPT = "32,000 tokens with log-probabilities"


def rows(scale: Scale, url: str) -> Iterator[Row]:
    """Yield the rows, for the server at *url*."""
    yield _decode(scale.of(10))
    yield _encode(scale.of(50))
    streamed = f"{EVENTS:,} events of what is new"
    growing = f"{GROWING_EVENTS} events that repeat all"
    yield _generation("generation", "as one document", url, generations.WHOLE, scale.of(20))
    yield _generation("generation-streamed", streamed, url, generations.STREAMED, scale.of(10))
    yield _generation("generation-growing", growing, url, generations.GROWING_STREAM, scale.of(2))
    yield _receive(url)


def _decode(times: int) -> Row:
    return Row(
        "decode",
        f"CPU to read {KEPT} from JSON (1.4 MB), against the standard json module",
        {
            "json": partial(generations.decoding, generations.read_plainly, times),
            "ours": partial(generations.decoding, generations.read_by_backend, times),
        },
        (ratio("ours", "json"),),
    )


def _encode(times: int) -> Row:
    return Row(
        "encode",
        "CPU to write a request with a prompt of 32,000 tokens as JSON, against the standard json module",
        {
            "json": partial(generations.encoding, generations.write_plainly, times),
            "ours": partial(generations.encoding, generations.write_by_backend, times),
        },
        (ratio("ours", "json"),),
    )


def _generation(name: str, how: str, url: str, manner: Manner, times: int) -> Row:
    return Row(
        name,
        f"CPU in the client of a generation of {KEPT}, {how}",
        {
            "plain": partial(generations.generation, generations.plainly, url, manner, times),
            "ours": partial(generations.generation, generations.by_engine, url, manner, times),
        },
        (ratio("ours", "plain", label="ours / plain aiohttp and json"),),
    )


def _receive(url: str) -> Row:
    return Row(
        "receive",
        "receiving a reply of 64 MB, against aiohttp's read()",
        {
            "plain": partial(generations.receiving, generations.receive_plainly, url),
            "ours": partial(generations.receiving, generations.receive_by_exchange, url),
        },
        (
            ratio("ours", "plain", of="cpu"),
            plain(part("ours", "peak"), label="ours, peak memory / its size"),
            plain(part("plain", "peak"), label="plain, peak memory / its size"),
        ),
        MILLISECONDS,
        {"cpu": Unit("ns a byte", 1e-9), "peak": Unit("bytes a byte")},
    )
