"""The words in which faults are ordered, and which requests they strike."""

from __future__ import annotations

import re
import statistics
from typing import Any

import pytest

from areal_core.embedded import EmbeddedServer
from areal_core.embedded._checks import BadRequestError
from areal_core.embedded._fault_script import FAULT_NAMES, GRAMMAR, ArmedFault, Fault, Malformed, read_fault

# One of each kind, as text and as JSON, and what it is counted as.
BOTH: list[tuple[str, dict[str, Any], str]] = [
    ("latency=20", {"latency": 20}, "latency"),
    (
        "latency=20,distribution=lognormal,sigma=0.5,seed=7",
        {"latency": 20, "distribution": "lognormal", "sigma": 0.5, "seed": 7},
        "latency",
    ),
    ("status=503,every=3,path=/generate", {"status": 503, "every": 3, "path": "/generate"}, "status_503"),
    ("status=429, retry_after=2", {"status": 429, "retry_after": 2}, "status_429"),
    ("status=429,retry_after=soon", {"status": 429, "retry_after": "soon"}, "status_429"),
    ("abort", {"abort": 0}, "abort"),
    ("abort=3,next=2", {"abort": 3, "next": 2}, "abort"),
    ("disconnect", {"disconnect": 0}, "disconnect"),
    ("disconnect=100,reset", {"disconnect": 100, "reset": True}, "disconnect"),
    ("idle=0.5", {"idle": 0.5}, "idle"),
    ("race,path=*", {"race": True, "path": "*"}, "race"),
    ("malformed=nan", {"malformed": "nan"}, "malformed_nan"),
    ("oversized=1e10", {"oversized": 10**10}, "oversized"),
    ("oversized=10000000000,gzip", {"oversized": 1e10, "gzip": True}, "oversized_gzip"),
    ("redirect=http://127.0.0.1:1/", {"redirect": "http://127.0.0.1:1/"}, "redirect"),
    ("silent,probability=.25", {"silent": True, "probability": 0.25}, "silent"),
    ("drip=1", {"drip": 1}, "drip"),
]


def struck(fault: Fault, requests: int, place: int = 0) -> list[int]:
    """Return which of so many requests *fault* strikes, counted from 1."""
    armed = ArmedFault(fault, place)
    return [number for number in range(1, requests + 1) if armed.strikes()]


@pytest.mark.parametrize(("text", "json", "name"), BOTH)
def test_a_fault_is_the_same_as_text_and_as_json(text: str, json: dict[str, Any], name: str) -> None:
    fault = read_fault("fault", text)
    assert fault == read_fault("fault", json)
    assert fault.name == name
    assert name in FAULT_NAMES
    assert {key: getattr(fault, key) for key in json if key in ("every", "next", "path", "seed")} == {
        key: value for key, value in json.items() if key in ("every", "next", "path", "seed")
    }


def test_the_grammar_names_every_kind_and_every_way_to_spoil_a_reply() -> None:
    kinds = {fault.kind for fault in (read_fault("", text) for text, _, _ in BOTH)}
    assert kinds <= set(re.findall(r"^    (\w+)", GRAMMAR, re.MULTILINE))
    assert set(Malformed) <= set(re.findall(r"\w+", GRAMMAR))
    with pytest.raises(BadRequestError, match=r"^fault=\{\} names no fault; give one of ") as raised:
        read_fault("fault", {})
    assert set(str(raised.value).partition("one of ")[2].split(", ")) == kinds


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("every=3", "fault='every=3' names no fault; give one of latency, status, "),
        ("silent,race", "fault='silent,race' names silent and race; give one of them"),
        ("", "fault='' is not KEY=VALUE,KEY=VALUE"),
        ("silent,", "fault='silent,' is not KEY=VALUE,KEY=VALUE"),
        ("abort=1,abort=2", "fault='abort=1,abort=2' has abort twice"),
        ("status=200", "fault.status=200 is not an integer in 400..599"),
        ("status", "fault.status=True is not an integer in 400..599"),
        ("status=5e2,retry_after=\n", "fault.retry_after='' is not a string of at least one character"),
        ({"status": 500, "retry_after": "a\r\nb"}, "fault.retry_after='a\\r\\nb' is no text for a header"),
        ("latency=-1", "fault.latency=-1 is not in 0..1e+15"),
        ("latency=soon", "fault.latency='soon' is not a number"),
        ({"latency": float("nan")}, "fault.latency=nan is not in 0..1e+15"),
        (
            "latency=1,distribution=normal",
            "distribution='normal' is none of constant, lognormal, exponential",
        ),
        (
            "latency=1,gzip",
            "fault.gzip=True is not for latency, which has distribution, sigma, path, every, ",
        ),
        ("drip=0", "fault.drip=0 is not in "),
        ("silent=yes", "fault.silent='yes' is not true or false"),
        ({"silent": False}, "fault.silent=False turns nothing on; leave it out"),
        ("malformed=odd", "fault.malformed='odd' is none of not_json, truncated, "),
        ("redirect=elsewhere", "fault.redirect='elsewhere' is not an http:// or https:// URL"),
        ("silent,every=0", "fault.every=0 is not an integer in 1..1000000000000000"),
        ("silent,probability=1.5", "fault.probability=1.5 is not in 0..1"),
        ("silent,every=2,next=3", "fault='silent,every=2,next=3' has every and next; give one of them"),
        (7, "fault=7 is not an object"),
    ],
)
def test_a_fault_no_server_could_do_is_refused_with_what_is_wrong(given: Any, problem: str) -> None:
    with pytest.raises(BadRequestError, match=re.escape(problem)):
        read_fault("fault", given)


def test_the_class_refuses_a_bad_fault_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"^fault\[1\].status=1 is not an integer in 400..599$"):
        EmbeddedServer(fault=["silent", "status=1"])
    with pytest.raises(ValueError, match=r"^fault\[0\]='bogus' names no fault; give one of latency, "):
        EmbeddedServer(fault=["bogus"])
    for bad in ("silent", [{"silent": True}]):
        with pytest.raises(TypeError, match=r" is not a list of texts$"):
            EmbeddedServer(fault=bad)  # type: ignore[arg-type]


def test_a_fault_strikes_all_or_each_kth_or_the_next_few() -> None:
    assert struck(Fault("silent", True), 3) == [1, 2, 3]
    assert struck(Fault("silent", True, every=3), 10) == [3, 6, 9]
    assert struck(Fault("silent", True, next=2), 10) == [1, 2]


def test_a_probability_is_drawn_from_the_seed() -> None:
    quarter = Fault("silent", True, probability=0.25, seed=1)
    assert 2350 < len(struck(quarter, 10_000)) < 2650
    assert struck(quarter, 100) == struck(quarter, 100)
    assert struck(quarter, 100) != struck(Fault("silent", True, probability=0.25, seed=2), 100)
    # Two of one script are independent: else the second would never get a turn.
    assert struck(quarter, 100) != struck(quarter, 100, place=1)
    assert struck(Fault("silent", True, probability=0), 1000) == []
    assert len(struck(Fault("silent", True, probability=1), 1000)) == 1000


def test_latencies_have_the_median_or_the_mean_they_were_given() -> None:
    def draws(text: str) -> list[float]:
        armed = ArmedFault(read_fault("fault", text), 0)
        return [armed.draw_s() * 1000 for _ in range(10_000)]

    assert set(draws("latency=20")) == {20}
    lognormal = draws("latency=20,distribution=lognormal,sigma=0.5")
    assert 19.5 < statistics.median(lognormal) < 20.5
    assert 3.0 < statistics.quantiles(lognormal, n=100)[-1] / 20 < 3.5  # exp(0.5 * 2.33)
    exponential = draws("latency=20,distribution=exponential")
    assert 19.4 < statistics.mean(exponential) < 20.6
    assert 13.3 < statistics.median(exponential) < 14.4  # 20 ln 2


def test_without_a_path_a_fault_strikes_what_generates_and_nothing_else() -> None:
    everywhere = read_fault("fault", "silent")
    paths = ["/generate", "/v1/completions", "/v1/chat/completions", "/inference/v1/generate", "/health"]
    assert [everywhere.matches(path) for path in paths] == [True, True, True, True, False]
    patterned = read_fault("fault", "silent,path=/v1/*")
    assert [patterned.matches(path) for path in paths] == [False, True, True, False, False]
