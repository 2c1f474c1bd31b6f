"""Words: faults for the embedded server, import paths, and the openings of tool calls."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from areal_core._agents.tool_calls import HermesParser
from areal_core._executor.work import find
from areal_core.embedded._checks import BadRequestError
from areal_core.embedded._fault_script import FAULT_NAMES, Fault, read_fault
from spoiling import Spoiler

FAULTS = (
    {"status": 503, "retry_after": 2, "every": 3, "path": "/generate"},
    {"latency": 1, "distribution": "lognormal", "sigma": 1, "probability": 0.5, "seed": 3},
    {"redirect": "http://127.0.0.1:1/"},
    {"disconnect": 3, "reset": True},
    {"oversized": 5, "gzip": True},
    {"malformed": "nan", "next": 2},
    {"drip": 0.5},
)


def read(given: object) -> Fault | None:
    """Return the fault that *given* is; None: it is none, and the error has words for that."""
    try:
        return read_fault("fault", given)
    except BadRequestError as error:
        words = str(error)
    assert words.startswith("fault")
    return None


def test_a_spoilt_fault_is_refused_in_words_or_is_one() -> None:
    spoiler = Spoiler(seed=7)
    faults = 0
    for _ in range(5_000):
        document = spoiler.document(spoiler.choice(FAULTS))
        try:
            ordered = json.loads(document)
        except ValueError:
            continue
        text = ",".join(f"{key}={value}" for key, value in ordered.items()) if ordered else ""
        for fault in (read(ordered), read(text), read(document.decode())):
            if fault is not None:
                faults += 1
                assert fault.name in FAULT_NAMES
                assert isinstance(fault.matches("/generate"), bool)
    assert faults > 500


@given(some.text(alphabet=some.sampled_from("status=503,latny.~ \n\0é"), max_size=40))
def test_any_text_is_a_fault_or_refused_in_words(text: str) -> None:
    read(text)


@given(some.text(alphabet=some.sampled_from("os.:path/\\ -\0\n1_é"), max_size=16))
def test_any_text_is_an_import_path_or_refused_in_words(path: str) -> None:
    try:
        found: object = find(path)
    except (ValueError, ImportError) as error:
        found = error
    assert not isinstance(found, ValueError) or str(found).endswith(
        "is no import path; give 'package.module:name'"
    )


@pytest.mark.parametrize(
    "opening",
    [
        "<tool_call>",
        "<tool_call>\n  ",
        "<tool_call>[",
        '<tool_call>"',
        "<tool_call>{",
        "<tool_call>{}",
        '<tool_call>{"',
        '<tool_call>{"a\n',
        '<tool_call>{"a": "',
        '<tool_call>{\\"',
        '<tool_call>{"\\"',
        '<tool_call>{"name": "f", "arguments": {"a": "',
    ],
    ids=repr,
)
def test_a_model_that_only_opens_tool_calls_does_not_hold_up_the_loop(opening: str) -> None:
    text = opening * 60_000 + "</tool_call>"  # as many tokens, since an opening is one
    began = time.process_time()
    assert HermesParser().parse(text) == (text, [])
    assert time.process_time() - began < 0.3  # to copy what is left at each opening takes longer
