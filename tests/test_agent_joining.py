"""Which calls of an agent are trained in one row: always in the context in which they were sampled."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from areal_core._agents.call import Call
from areal_core._agents.joining import rows_of
from areal_core._agents.recording import Recording
from areal_core.trajectory import check_trajectory_format

END = 9
"""The token that ends replies in the examples."""


def a_call(name: str, prompt: list[int], output: list[int], began: float = 0.0, ended: float = 0.0) -> Call:
    return Call(
        id=name,
        prompt_tokens=prompt,
        output_tokens=output,
        output_logprobs=[-0.5] * len(output),
        output_versions=[0] * len(output),
        versions_exact=True,
        finish_reason="stop",
        content=None,
        began=began,
        ended=ended,
    )


def names_of(*calls: Call) -> list[str]:
    """Return the rows of *calls*, each as the names of its calls."""
    return ["".join(call.id for call in row.calls) for row in rows_of(calls)]


# The conversation of the examples: a prompt, a reply, what the agent says to it, another reply.
PROMPT, REPLY, ANSWER, SECOND = [1, 2, 3], [4, 5, END], [6, 7], [8, END]
HISTORY = PROMPT + REPLY + ANSWER
FIRST = a_call("a", PROMPT, REPLY)


@pytest.mark.parametrize(
    "prompt",
    [HISTORY, PROMPT + REPLY, HISTORY + SECOND],
    ids=["and an answer", "and no answer", "and a reply of somebody else"],
)
def test_a_prompt_that_begins_with_all_tokens_of_a_call_continues_its_row(prompt: list[int]) -> None:
    (row,) = rows_of([FIRST, a_call("b", prompt, SECOND)])
    assert row.tokens == prompt + SECOND
    assert len(row) == len(row.tokens)
    told = len(prompt)
    assert [(where, call.id) for where, call in row.sampled()] == [
        (slice(3, 6), "a"),
        (slice(told, told + 2), "b"),
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        [1, 0, 3, *REPLY, *ANSWER],
        [1, 2, 0, *REPLY, *ANSWER],
        [*PROMPT, 4, 0, END, *ANSWER],
        [*PROMPT, 4, 5, 0, *ANSWER],
        [*PROMPT, 4, 5, *ANSWER],
        [*PROMPT, 4, 5],
        [*PROMPT, 4, 5, 5, END, *ANSWER],
        PROMPT + ANSWER,
        REPLY + ANSWER,
        [0, *HISTORY],
        [1, 2, 2, 3, *REPLY, *ANSWER],
        [2, 3, *REPLY, *ANSWER],
        PROMPT,
        [3],
        [6, 7],
    ],
    ids=[
        "told token edited",
        "last told token edited",
        "sampled token edited",
        "end token replaced",
        "end token dropped",
        "reply cut short",
        "token put into the reply",
        "reply dropped",
        "prompt dropped",
        "another template",
        "token put into the prompt",
        "first token dropped",
        "the same prompt",
        "part of it",
        "another conversation",
    ],
)
def test_any_other_prompt_begins_a_row(prompt: list[int]) -> None:
    rows = rows_of([FIRST, a_call("b", prompt, SECOND)])
    assert [row.tokens for row in rows] == [PROMPT + REPLY, prompt + SECOND]
    assert [where for where, _ in rows[1].sampled()] == [slice(len(prompt), len(prompt) + 2)]


def test_of_two_branches_the_second_begins_a_row() -> None:
    second, third = a_call("b", HISTORY, SECOND), a_call("c", PROMPT + REPLY + [0], SECOND)
    assert names_of(FIRST, second, third) == ["ab", "c"]
    assert names_of(FIRST, third, second) == ["ac", "b"]


def test_a_branch_that_was_left_is_gone_on_with() -> None:
    branch = a_call("c", HISTORY[:-1], [0])
    back = a_call("d", HISTORY + SECOND + [1], SECOND)
    assert names_of(FIRST, a_call("b", HISTORY, SECOND), branch, back) == ["abd", "c"]


def test_parallel_replies_to_one_prompt_have_a_row_each() -> None:
    replies = [a_call(name, PROMPT, [4, token]) for name, token in (("a", 0), ("b", 1), ("c", 2))]
    assert names_of(*replies) == ["a", "b", "c"]
    assert names_of(*replies, a_call("d", [*PROMPT, 4, 1, 7], [0])) == ["a", "bd", "c"]


def test_agents_that_take_turns_have_a_row_each() -> None:
    one = [a_call("a", [1], [2]), a_call("b", [1, 2, 3], [4]), a_call("c", [1, 2, 3, 4, 5], [6])]
    other = [a_call("x", [0], [2]), a_call("y", [0, 2, 3], [4]), a_call("z", [0, 2, 3, 4, 5], [6])]
    assert names_of(one[0], other[0], one[1], other[1], other[2], one[2]) == ["abc", "xyz"]


def test_the_longest_row_that_fits_is_continued() -> None:
    short, long = a_call("s", PROMPT, [4]), a_call("l", PROMPT, [4, 5])
    last = a_call("d", [*PROMPT, 4, 5, 6], [0])
    assert names_of(short, long, last) == ["s", "ld"]
    assert names_of(long, short, last) == ["ld", "s"]
    later = a_call("e", [*PROMPT, 4, 6], [0])
    assert names_of(long, short, last, later) == ["ld", "se"]


def test_of_rows_with_the_same_tokens_the_first_is_continued() -> None:
    twin = a_call("t", PROMPT, REPLY)
    assert names_of(FIRST, twin, a_call("b", HISTORY, SECOND)) == ["ab", "t"]
    assert names_of(twin, FIRST, a_call("b", HISTORY, SECOND)) == ["tb", "a"]


def test_a_call_that_sampled_nothing_is_in_no_row_and_in_nobodys_way() -> None:
    nothing = a_call("n", [*PROMPT, *REPLY, 0], [])
    assert names_of(nothing) == []
    assert names_of(FIRST, nothing, a_call("b", HISTORY, SECOND)) == ["ab"]
    assert names_of(nothing, a_call("b", [*PROMPT, *REPLY, 0], SECOND)) == ["b"]


def test_a_call_may_begin_before_the_stream_it_continues_is_at_its_end() -> None:
    streamed = a_call("a", PROMPT, REPLY, began=0.0, ended=2.0)
    assert names_of(streamed, a_call("b", HISTORY, SECOND, began=1.0, ended=3.0)) == ["ab"]


# Random trees of conversations. There are few tokens, so that much fits by chance, too.
tokens = st.integers(0, 2)
told = st.lists(tokens, max_size=3)
sampled = st.lists(st.tuples(tokens, st.integers(0, 3)), max_size=3)


@st.composite
def histories(draw: st.DrawFn, base: Call) -> list[int]:
    """Draw the history that an agent sends after *base*, faithfully or not."""
    history = base.prompt_tokens + base.output_tokens
    place = draw(st.integers(0, len(history) - 1))
    after = draw(st.integers(place + 1, len(history)))
    ways = {
        "continued": history,
        "continued as well": history,
        "asked again": base.prompt_tokens,
        "edited": [*history[:place], draw(tokens), *history[place + 1 :]],
        "dropped": history[:place] + history[after:],
        "cut": history[:place],
        "another template": draw(told) + history,
    }
    way = draw(st.sampled_from(sorted(ways)))
    event(way)
    return ways[way]


@st.composite
def trees(draw: st.DrawFn) -> list[Call]:
    """Draw calls, in the order in which they began; each of their tokens has a log-probability of its own."""
    calls: list[Call] = []
    count = 0
    for number in range(draw(st.integers(1, 10))):
        base = draw(st.sampled_from([None, *calls]))
        prompt = [] if base is None else draw(histories(base))
        output = draw(sampled)
        call = Call(
            id=f"call {number}",
            prompt_tokens=prompt + draw(told) or [0],
            output_tokens=[token for token, _ in output],
            output_logprobs=[-(count + place) / 64 for place in range(1, len(output) + 1)],  # float32 has it
            output_versions=[version for _, version in output],
            versions_exact=True,
            finish_reason="stop",
            content=None,
            began=float(number),
            ended=number + draw(st.floats(0, 3)),
        )
        count += len(output)
        calls.append(call)
    return calls


class Origin(NamedTuple):
    """Where a token comes from that was sampled."""

    call: Call
    place: int
    """Which of the call's tokens it is."""

    @property
    def context(self) -> list[int]:
        return self.call.prompt_tokens + self.call.output_tokens[: self.place]

    @property
    def facts(self) -> tuple[str, int, float, int]:
        call, place = self
        return (
            call.id,
            call.output_tokens[place],
            call.output_logprobs[place],
            call.output_versions[place],
        )


def origins_of(calls: list[Call]) -> dict[float, Origin]:
    """Return where the token comes from that has a log-probability."""
    return {
        logprob: Origin(call, place) for call in calls for place, logprob in enumerate(call.output_logprobs)
    }


def recording_of(calls: list[Call]) -> Recording:
    recording = Recording()
    for call in calls:
        recording.add(call)
    return recording


def is_trainable(calls: list[Call]) -> bool:
    return any(call.output_tokens for call in calls)


def check_row(row: dict[str, Any], origins: dict[float, Origin]) -> list[tuple[str, int, float, int]]:
    """See that what is trained was sampled in this very context; return all of it."""
    length = int(row["attention_mask"].sum())
    ids = row["input_ids"].tolist()
    found = []
    for place in np.flatnonzero(row["loss_mask"]):
        origin = origins[float(row["logprobs"][place])]
        assert ids[:place] == origin.context
        assert row["returns"][place] == float(origin.call.id.removeprefix("call "))
        found.append((origin.call.id, ids[place], row["logprobs"][place], row["versions"][place]))
    rest = row["loss_mask"] == 0
    assert (row["versions"][rest] == -1).all()
    assert not row["logprobs"][rest].any() and not row["returns"][rest].any()
    assert row["loss_mask"][length - 1] == 1, "nothing stands behind the last token that is trained"
    assert not any(row[key][length:].any() for key in ("input_ids", "attention_mask", "loss_mask"))
    return found


@given(trees().filter(is_trainable), st.randoms())
def test_each_token_is_trained_once_in_the_context_in_which_it_was_sampled(
    calls: list[Call], random: Any
) -> None:
    origins = origins_of(calls)
    shuffled = list(calls)
    random.shuffle(shuffled)
    recording = recording_of(shuffled)
    assert list(recording.calls) == calls
    numbers = {call.id: float(number) for number, call in enumerate(calls)}
    trajectory = recording.to_trajectory(numbers, discount=0)
    row_count, length = check_trajectory_format(trajectory)
    assert length == trajectory["attention_mask"].sum(axis=1).max()
    found = []
    for number in range(row_count):
        row = {key: array[number] for key, array in trajectory.items()}
        trained = check_row(row, origins)
        assert row["rewards"] == numbers[trained[-1][0]]
        found += trained
    assert Counter(found) == Counter(origin.facts for origin in origins.values())


@given(trees())
def test_no_call_begins_a_row_that_could_continue_one_nor_leaves_a_longer_one(calls: list[Call]) -> None:
    rows = rows_of(calls)
    assert sorted(row.calls[0].began for row in rows) == [row.calls[0].began for row in rows]
    for row in rows:
        earlier: Call | None = None
        for call in row.calls:
            fitting = [old for old in ends_before(call, rows) if call.prompt_tokens[: len(old)] == old]
            joined = [] if earlier is None else earlier.prompt_tokens + earlier.output_tokens
            assert max(fitting, key=len, default=[]) == joined
            earlier = call
        event(f"{len(row.calls)} calls in a row")


def ends_before(call: Call, rows: list[Any]) -> list[list[int]]:
    """Return all tokens of each row as they were when *call* began."""
    before = [[old for old in row.calls if old.began < call.began] for row in rows]
    return [old[-1].prompt_tokens + old[-1].output_tokens for old in before if old]


@given(trees())
def test_joining_changes_no_call(calls: list[Call]) -> None:
    def contents() -> list[Any]:
        return [(list(call.prompt_tokens), list(call.output_tokens)) for call in calls]

    before = contents()
    assert sum(len(row.tokens) for row in rows_of(calls)) == sum(len(row) for row in rows_of(calls))
    assert contents() == before
