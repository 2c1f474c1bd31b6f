"""Messages to tokens: what was sampled is in the next prompt as it was, and only where it belongs."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, cast

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from areal_core._agents.chat_format import ChatFormat, ChatTemplateError
from areal_core._agents.conversation import Conversations
from small_tokenizer import END, OTHER_END, SmallTokenizer, sampled, turn

ASSISTANT = "<|im_start|>assistant\n"
SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "hello there"}
MORE = {"role": "user", "content": "and more"}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
MADE = '<tool_call>{"name":"add","arguments":{"a":1,"b":"two"}}</tool_call>'
"""A call as the model writes it; the template has spaces where there are none here."""


def said(content: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def calling(arguments: str = '{"a":1,"b":"two"}', call_id: str = "c1", **fields: Any) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "add", "arguments": arguments}}
    return said(fields.pop("content", None), tool_calls=[call], **fields)


ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "3"}


class Talk:
    """Conversations in one format, with what they are told."""

    def __init__(self, tokenizer: SmallTokenizer | None = None) -> None:
        self.chat = ChatFormat(tokenizer or SmallTokenizer())
        self.all = Conversations()

    def prompt(self, *messages: dict[str, Any], tools: Any = None, **kwargs: Any) -> list[int]:
        before = copy.deepcopy(messages)
        self.last = self.all.prompt(self.chat, messages, tools, kwargs)
        assert messages == before
        return self.last.tokens

    def whole(self, *messages: dict[str, Any], tools: Any = None, **kwargs: Any) -> list[int]:
        """Return what the template writes, tokenized at once."""
        return self.chat.encode(self.chat.text(messages, tools, kwargs, generation_prompt=True))

    def reply(
        self,
        *messages: dict[str, Any],
        told: dict[str, Any],
        tokens: list[int],
        tools: Any = None,
        **kwargs: Any,
    ) -> list[int]:
        """Return the tokens of *messages* and of the reply *told*, which is remembered."""
        prompt = self.prompt(*messages, tools=tools, **kwargs)
        self.all.remember(self.last, tokens, told)
        return prompt + tokens

    def after(self, text: str) -> list[int]:
        return self.chat.encode(text + ASSISTANT)


def test_what_was_never_said_is_tokenized_as_a_whole() -> None:
    talk = Talk()
    expected = turn("system", "Be brief.") + turn("user", "hello there") + ASSISTANT
    assert talk.prompt(SYSTEM, HELLO) == talk.chat.encode(expected)


def test_a_reply_is_in_the_next_prompt_as_it_was_sampled() -> None:
    talk = Talk()
    first = talk.reply(HELLO, told=said("hi you"), tokens=sampled("hi you"))
    second = talk.prompt(HELLO, said("hi you"), MORE)
    assert second == first + talk.after("\n" + turn("user", "and more"))
    assert second != talk.whole(HELLO, said("hi you"), MORE)
    assert talk.chat.decode(second) == talk.chat.decode(talk.whole(HELLO, said("hi you"), MORE))


def test_all_replies_are_there_after_many_turns() -> None:
    talk = Talk()
    messages, expected = [SYSTEM], talk.chat.encode(turn("system", "Be brief."))[:-1]
    for number in range(5):
        messages.append({"role": "user", "content": f"question {number}"})
        prompt = talk.prompt(*messages)
        expected += talk.after(f"\n{turn('user', f'question {number}')}")
        assert prompt == expected
        told = said(f"answer {number}")
        talk.all.remember(talk.last, sampled(f"answer {number}"), told)
        messages.append(told)
        expected = prompt + sampled(f"answer {number}")


def test_a_tool_call_is_there_as_it_was_written() -> None:
    talk = Talk()
    first = talk.reply(HELLO, told=calling(), tokens=sampled(MADE), tools=TOOLS)
    second = talk.prompt(HELLO, calling(), ANSWER, tools=TOOLS)
    assert second == first + talk.after("\n" + turn("user", "3"))
    assert MADE not in talk.chat.shown(talk.whole(HELLO, calling(), ANSWER, tools=TOOLS))


def test_content_beside_a_call_is_there_with_its_blanks() -> None:
    talk = Talk()
    told = calling(content="So:\nDone.")
    first = talk.reply(HELLO, told=told, tokens=sampled(f"So:  {MADE}\n\nDone. "), tools=TOOLS)
    assert talk.prompt(HELLO, told, ANSWER, tools=TOOLS)[: len(first)] == first


@pytest.mark.parametrize(
    ("tokens", "content"),
    [
        (sampled("hi yo", end=None), "hi yo"),
        (sampled("hi STOP", end=None), "hi "),
        (sampled("hi", end=OTHER_END), "hi"),
        ([], ""),
    ],
    ids=["length", "stop-string", "stop-token", "nothing"],
)
def test_a_reply_that_was_cut_gets_its_end(tokens: list[int], content: str) -> None:
    talk = Talk()
    first = talk.reply(HELLO, told=said(content), tokens=tokens)
    assert talk.prompt(HELLO, said(content), MORE) == [
        *first,
        END,
        *talk.after("\n" + turn("user", "and more")),
    ]


def test_a_reply_may_be_the_last_message() -> None:
    talk = Talk()
    first = talk.reply(HELLO, told=said("hi"), tokens=sampled("hi"))
    assert talk.prompt(HELLO, said("hi")) == first + talk.after("\n")


def test_another_branch_goes_on_from_what_it_has_in_common() -> None:
    talk = Talk()
    first = talk.reply(HELLO, told=said("hi you"), tokens=sampled("hi you"))
    second = talk.reply(HELLO, said("hi you"), MORE, told=said("so"), tokens=sampled("so"))
    other = {"role": "user", "content": "something else"}
    assert talk.prompt(HELLO, said("hi you"), other) == first + talk.after(
        f"\n{turn('user', other['content'])}"
    )
    assert talk.prompt(HELLO, said("hi you"), MORE, said("so"), other)[: len(second)] == second
    edited = talk.prompt(HELLO, said("hi you"), MORE, said("no"), other)
    assert edited == first + talk.after(
        "\n" + turn("user", "and more") + turn("assistant", "no") + turn("user", other["content"])
    )


def test_of_two_replies_that_say_the_same_the_later_is_there() -> None:
    talk = Talk()
    talk.reply(HELLO, told=said("hi you"), tokens=sampled("hi you"))
    merged = [*talk.chat.encode("hi you"), END]
    later = talk.reply(HELLO, told=said("hi you"), tokens=merged)
    assert talk.prompt(HELLO, said("hi you"), MORE)[: len(later)] == later


REMEMBERED: Any = (SYSTEM, HELLO, said("hi you"), MORE)


@pytest.mark.parametrize(
    ("messages", "asked"),
    [
        ((SYSTEM, HELLO, said("hi You"), MORE), {}),
        ((SYSTEM, HELLO, said("hi you "), MORE), {}),
        ((SYSTEM, {**HELLO, "content": "hello"}, said("hi you"), MORE), {}),
        ((SYSTEM, {**HELLO, "name": "Ann"}, said("hi you"), MORE), {}),
        ((SYSTEM, {**HELLO, "role": "tool"}, said("hi you"), MORE), {}),
        ((SYSTEM, HELLO, said("hi you", name="Bob"), MORE), {}),
        ((SYSTEM, HELLO, said("hi you", reasoning_content="Hm."), MORE), {}),
        ((SYSTEM, HELLO, said("hi you", reasoning="Hm."), MORE), {}),
        ((SYSTEM, HELLO, {"role": "user", "content": "hi you"}, MORE), {}),
        ((SYSTEM, HELLO, calling(content="hi you"), MORE), {}),
        ((HELLO, said("hi you"), MORE), {}),
        ((SYSTEM, said("hi you"), MORE), {}),
        ((SYSTEM, HELLO, MORE), {}),
        ((SYSTEM, HELLO, MORE, said("hi you")), {}),
        (({**SYSTEM, "content": "Be long."}, HELLO, said("hi you"), MORE), {}),
        (REMEMBERED, {"tools": None}),
        (REMEMBERED, {"tools": [*TOOLS, *TOOLS]}),
        (REMEMBERED, {"day": 4}),
        (REMEMBERED, {"day": 3, "night": 3}),
    ],
    ids=range(19),
)  # fmt: skip
def test_what_was_said_otherwise_is_tokenized_as_a_whole(messages: Any, asked: dict[str, Any]) -> None:
    talk = Talk()
    options = {"tools": TOOLS, "day": 3}
    first = talk.reply(SYSTEM, HELLO, told=said("hi you"), tokens=sampled("hi you"), **options)
    assert talk.prompt(*REMEMBERED, **options)[: len(first)] == first
    options |= asked
    assert talk.prompt(*messages, **options) == talk.whole(*messages, **options)


@pytest.mark.parametrize(
    "message",
    [
        calling('{"a":2,"b":"two"}'),
        calling('{"a":1.0,"b":"two"}'),
        calling('{"a":1,"b":"two"'),
        calling(call_id="c2"),
        calling(content="So:"),
        said(None),
        {**calling(), "tool_calls": 2 * calling()["tool_calls"]},
        {
            **calling(),
            "tool_calls": [{"id": "c1", "function": {"name": "sub", "arguments": '{"a":1,"b":"two"}'}}],
        },
    ],
    ids=range(8),
)
def test_another_call_is_tokenized_as_a_whole(message: dict[str, Any]) -> None:
    talk = Talk()
    talk.reply(HELLO, told=calling(), tokens=sampled(MADE), tools=TOOLS)
    assert talk.prompt(HELLO, message, ANSWER, tools=TOOLS) == talk.whole(HELLO, message, ANSWER, tools=TOOLS)


@pytest.mark.parametrize(
    ("told", "sent"),
    [
        (said("hi you"), [{"type": "text", "text": "hi you"}]),
        (said("hi you"), [{"type": "text", "text": "hi"}, {"type": "text", "text": " you"}]),
    ],
    ids=["one-part", "parts"],
)
def test_parts_of_text_say_the_same_as_the_text(told: dict[str, Any], sent: Any) -> None:
    talk = Talk()
    first = talk.reply(HELLO, told=told, tokens=sampled("hi you"))
    parts = {**HELLO, "content": [{"type": "text", "text": "hello there"}]}
    assert talk.prompt(parts, said(sent), MORE)[: len(first)] == first


@pytest.mark.parametrize(
    "message",
    [
        calling('{"a": 1, "b": "two"}'),
        calling('{\n"b": "tw\\u006f", "a": 1}'),
        calling(content=""),
        {name: value for name, value in calling().items() if name != "content"},
        calling(refusal=None, annotations=[], audio=None, function_call=None, parsed=None),
        {**calling(), "tool_calls": [{**calling()["tool_calls"][0], "index": 0}]},
        calling(reasoning_content="", reasoning=None),
    ],
    ids=range(7),
)
def test_a_call_may_come_back_in_other_words(message: dict[str, Any]) -> None:
    talk = Talk()
    first = talk.reply(HELLO, told=calling(), tokens=sampled(MADE), tools=TOOLS)
    assert talk.prompt(HELLO, message, ANSWER, tools=TOOLS)[: len(first)] == first


def sent_by_sdk(*messages: Any) -> list[dict[str, Any]]:
    """Return *messages* as OpenAI's SDK sends them."""
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(200, json={"id": "1", "object": "chat.completion", "choices": []})

    with (
        httpx.Client(transport=httpx.MockTransport(answer)) as http,
        openai.OpenAI(api_key="key", base_url="http://door/v1", http_client=cast(Any, http)) as client,
    ):
        client.chat.completions.create(model="m", messages=list(messages))
    sent: list[dict[str, Any]] = json.loads(bodies[0])["messages"]
    return sent


@pytest.mark.parametrize("told", [said("hi you", refusal=None), calling(refusal=None)], ids=["text", "call"])
@pytest.mark.parametrize(
    "as_sent",
    [
        lambda message: message,
        lambda message: message.model_dump(),
        lambda message: message.model_dump(exclude_none=True),
        lambda message: message.model_dump(exclude_unset=True),
        lambda message: message.to_dict(),
        lambda message: json.loads(message.to_json()),
    ],
    ids=["itself", "dump", "dump-no-none", "dump-set", "to_dict", "to_json"],
)
def test_what_the_sdk_sends_back_says_the_same(told: dict[str, Any], as_sent: Any) -> None:
    talk = Talk()
    message = as_sent(ChatCompletionMessage.model_validate(told))
    first = talk.reply(HELLO, told=told, tokens=sampled("hi you"))
    assert talk.prompt(*sent_by_sdk(HELLO, message, MORE))[: len(first)] == first


class Forgetful(SmallTokenizer):
    """Its template leaves out the thoughts of earlier replies; of the last too, if that is so."""

    of_last = False

    def apply_chat_template(
        self, conversation: Sequence[dict[str, Any]], tools: Any = None, **rest: Any
    ) -> Any:
        kept = (
            len(conversation)
            if self.of_last
            else max(n for n, message in enumerate(conversation) if message["role"] == "user")
        )
        shown = [
            {**one, "content": one["content"].partition("</think>")[2]}
            if n < kept and "</think>" in one["content"]
            else one
            for n, one in enumerate(conversation)
        ]
        return super().apply_chat_template(shown, tools, **rest)


@pytest.mark.parametrize("of_last", [False, True])
def test_thoughts_that_the_template_leaves_out_are_not_seen_again(of_last: bool) -> None:
    tokenizer = Forgetful()
    tokenizer.of_last = of_last
    talk = Talk(tokenizer)
    thought = "<think>so</think>hi you"
    talk.reply(HELLO, told=said(thought), tokens=sampled(thought))
    whole = talk.chat.encode(
        turn("user", "hello there") + turn("assistant", "hi you") + turn("user", "and more") + ASSISTANT
    )
    assert talk.prompt(HELLO, said(thought), MORE) == whole


def test_thoughts_are_kept_while_the_template_keeps_them() -> None:
    talk = Talk(Forgetful())
    thought = "<think>so</think>hi you"
    first = talk.reply(HELLO, told=said(thought), tokens=sampled(thought))
    assert talk.prompt(HELLO, said(thought), ANSWER)[: len(first)] == first


class Odd(SmallTokenizer):
    """Writes something else in one place."""

    def __init__(self, **places: Any) -> None:
        super().__init__()
        self.end = places.get("end", "<|im_end|>\n")
        self.prompt = places.get("prompt", ASSISTANT)
        self.wants_user_last = places.get("wants_user_last", False)
        self.blanks = places.get("blanks", "")

    def turn(self, message: dict[str, Any]) -> str:
        text = super().turn(message)
        if message["role"] != "assistant":
            return text
        text = text.replace("</think>", f"</think>{self.blanks}").removesuffix("<|im_end|>\n")
        return f"{text}{self.end}"

    def apply_chat_template(self, conversation: Any, tools: Any = None, **rest: Any) -> Any:
        if self.wants_user_last and conversation[-1]["role"] != "user":
            raise ValueError("the user has the last word")
        text = super().apply_chat_template(conversation, tools, **rest)
        return text.removesuffix(ASSISTANT) + self.prompt if rest["add_generation_prompt"] else text


@pytest.mark.parametrize(
    "odd",
    [{"end": "\n"}, {"prompt": ASSISTANT + "<think>\n"}, {"wants_user_last": True}],
    ids=["no-eos", "other-prompt", "user-last"],
)
@pytest.mark.parametrize("told", [said("hi you"), calling()], ids=["text", "call"])
def test_where_the_end_of_a_reply_cannot_be_found_all_is_tokenized(
    odd: dict[str, Any], told: dict[str, Any]
) -> None:
    talk = Talk(Odd(**odd))
    talk.reply(HELLO, told=told, tokens=sampled("hi you"))
    assert talk.prompt(HELLO, told, MORE) == talk.whole(HELLO, told, MORE)


class Beginning(SmallTokenizer):
    """Its template says first whether anything was said before."""

    def apply_chat_template(self, conversation: Any, tools: Any = None, **rest: Any) -> Any:
        text = super().apply_chat_template(conversation, tools, **rest)
        return f"{'later' if len(conversation) > 1 else 'first'}\n{text}"


def test_a_beginning_that_is_as_long_and_says_something_else_is_not_the_same() -> None:
    talk = Talk(Beginning())
    talk.reply(HELLO, told=said("hi you"), tokens=sampled("hi you"))
    assert talk.prompt(HELLO, said("hi you"), MORE) == talk.whole(HELLO, said("hi you"), MORE)


def test_a_reply_may_write_out_the_end_token() -> None:
    talk = Talk()
    text = "it ends with <|im_end|>, you know"
    first = talk.reply(HELLO, told=said(text), tokens=sampled(text))
    assert talk.prompt(HELLO, said(text), MORE) == first + talk.after("\n" + turn("user", "and more"))


def test_a_template_may_put_blanks_where_the_model_did_not() -> None:
    talk = Talk(Odd(blanks="\n\n"))
    thought = "<think>so</think>\nhi you"
    first = talk.reply(HELLO, told=said(thought), tokens=sampled(thought))
    assert talk.prompt(HELLO, said(thought), MORE) == first + talk.after("\n" + turn("user", "and more"))


class Greedy(SmallTokenizer):
    """Its end token takes the line break behind it along, as some tokenizers' special tokens do."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        return super().encode(text.replace("<|im_end|>\n", "<|im_end|>"), add_special_tokens=False)


def test_what_comes_behind_the_end_is_tokenized_as_it_is_there() -> None:
    talk = Talk(Greedy())
    first = talk.reply(HELLO, told=said("hi you"), tokens=sampled("hi you"))
    assert talk.prompt(HELLO, said("hi you"), MORE) == first + talk.after(turn("user", "and more"))


class Literal(SmallTokenizer):
    """Does not know its end token in text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        return super().encode(text.replace("<|im_end|>", "(end)"), add_special_tokens=False)


def test_an_end_that_has_no_token_of_its_own_is_not_there_twice() -> None:
    talk = Talk(Literal())
    first = talk.reply(HELLO, told=said("hi you"), tokens=sampled("hi you"))
    assert talk.prompt(HELLO, said("hi you"), MORE) == first + talk.after("\n" + turn("user", "and more"))


def test_messages_that_cannot_be_written_are_refused() -> None:
    talk = Talk()
    for bad in (
        {"role": "user", "content": "\ud800"},
        {**HELLO, "odd": object()},
        {"role": "user", "content": [{}]},
    ):
        with pytest.raises(ChatTemplateError):
            talk.prompt(bad)


def test_a_prompt_belongs_to_who_asked() -> None:
    talk = Talk()
    talk.reply(HELLO, told=said("hi"), tokens=sampled("hi"))
    prompt = talk.prompt(HELLO, said("hi"), MORE)
    kept = list(prompt)
    prompt.clear()
    assert talk.prompt(HELLO, said("hi"), MORE) == kept


class Counting(dict[str, Any]):
    """A message that counts how often it is looked at."""

    looks = 0

    def get(self, *args: Any) -> Any:
        type(self).looks += 1
        return super().get(*args)


@pytest.mark.parametrize("turns", [20, 200])
def test_looking_up_is_linear_in_the_messages(turns: int) -> None:
    talk = Talk()
    messages: list[dict[str, Any]] = []
    kept: list[int] = []
    for number in range(turns):
        messages += [Counting(role="user", content=f"{number}"), Counting(role="assistant", content="ok")]
        kept = talk.reply(*messages[:-1], told=messages[-1], tokens=sampled("ok"))
    Counting.looks = 0
    assert kept
    assert talk.prompt(*messages, MORE)[: len(kept)] == kept
    assert Counting.looks <= 5 * len(messages)
