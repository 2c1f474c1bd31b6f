"""The tokenizer of the embedded server's models: chats as that writes them, and back to text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core.embedded import ChatTokenizer, EmbeddedServer, policy
from areal_core.embedded._models.letters import END_TOKEN
from calls import call

LETTERS, DIGITS = ChatTokenizer("test"), ChatTokenizer("policy")
QUESTION = {"role": "user", "content": "314="}


def message(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def calling(arguments: Any, name: str = "check", content: str | None = None) -> dict[str, Any]:
    """Return a reply that calls a tool, its fields in the order in which SDKs have them."""
    function = {"arguments": arguments, "name": name}
    return message("assistant", content, tool_calls=[{"id": "1", "type": "function", "function": function}])


def written(tokenizer: ChatTokenizer, *messages: dict[str, Any], reply_follows: bool = False) -> Any:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply_follows)


def tokens_at(mode: str, *messages: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the tokens that a server in *mode* makes of a chat, and those that the tokenizer makes."""
    with EmbeddedServer(ms_per_token=0, mode=mode, log_tokens=True) as server:
        body = {"model": "any", "messages": messages, "max_tokens": 1}
        assert call(server, "POST", "/v1/chat/completions", body)[0] == 200
        (read,) = [one["input_ids"] for one in server.log() if one["event"] == "start"]
    made = ChatTokenizer(mode).apply_chat_template(messages, add_generation_prompt=True)
    assert isinstance(made, list)
    return read, made


# Chats


def test_a_chat_is_written_as_the_server_writes_it() -> None:
    read, made = tokens_at(
        "text",
        message("system", "Be brief."),
        message("user", "Grüße"),
        message("assistant", "hello"),
        message("user", ""),
    )
    assert made == read
    assert made.count(END_TOKEN) == 4


def test_digits_are_written_as_the_server_writes_them() -> None:
    read, made = tokens_at("policy", message("system", "0="), QUESTION)
    assert made == read == policy.encode("0=314=")


@pytest.mark.parametrize("mode", ["text", "test"])
def test_tools_and_calls_are_written_as_hermes_has_them(mode: str) -> None:
    tools = [{"type": "function", "function": {"name": "check"}}]
    text = ChatTokenizer(mode).apply_chat_template(
        [QUESTION, calling({"answer": "413"}, content="so"), message("tool", "1")], tools, tokenize=False
    )
    assert text == (
        f"<|system|>\n<tools>{json.dumps(tools)}</tools>\4\n"
        "<|user|>\n314=\4\n"
        "<|assistant|>\nso\n"
        '<tool_call>\n{"name": "check", "arguments": {"answer": "413"}}\n</tool_call>\4\n'
        "<|tool|>\n1\4\n"
    )


def test_a_conversation_of_digits_has_the_tokens_of_its_text_and_an_end_behind_each_reply() -> None:
    messages = [QUESTION, calling({"answer": "413"}), message("tool", "1="), message("assistant", "413")]
    assert written(DIGITS, *messages) == "314=_413.1=413."
    assert DIGITS.apply_chat_template(messages) == [
        *policy.encode("314=_413"), policy.END, *policy.encode("1=413"), policy.END
    ]  # fmt: skip


def test_digits_have_the_values_of_all_arguments_and_nothing_of_tools() -> None:
    two = calling({"from": 3, "to": "14"})
    assert written(DIGITS, two) == "_314."
    assert written(DIGITS, calling("31")) == "_31."
    assert DIGITS.apply_chat_template([QUESTION], tools=[{"type": "function"}], tokenize=False) == "314="


@pytest.mark.parametrize("tokenizer", [LETTERS, DIGITS], ids=["letters", "digits"])
def test_a_chat_that_goes_on_begins_with_the_chat_so_far(tokenizer: ChatTokenizer) -> None:
    turns = [QUESTION, calling({"answer": "4"}), message("tool", "0="), message("assistant", "413")]
    for count in range(1, len(turns)):
        so_far, more = (written(tokenizer, *turns[:end]) for end in (count, count + 1))
        assert more.startswith(so_far)
    asked = written(tokenizer, *turns[:3], reply_follows=True)
    assert written(tokenizer, *turns) == f"{asked}413{tokenizer.eos_token}" + (
        "\n" if tokenizer is LETTERS else ""
    )


# Tokens and text


@pytest.mark.parametrize(
    ("tokenizer", "token"), [(LETTERS, END_TOKEN), (DIGITS, policy.END)], ids=["letters", "digits"]
)
def test_the_end_is_one_token_that_can_be_left_out(tokenizer: ChatTokenizer, token: int) -> None:
    assert tokenizer.eos_token_id == token
    assert tokenizer.encode(tokenizer.eos_token, add_special_tokens=False) == [token]
    tokens = tokenizer.encode(f"31{tokenizer.eos_token}4")
    assert tokenizer.decode(tokens) == f"31{tokenizer.eos_token}4"
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "314"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_letters_are_bytes_and_come_back(text: str) -> None:
    tokens = LETTERS.encode(text)
    assert tokens == list(text.encode())
    assert LETTERS.decode(tokens) == text


@given(st.text("0123456789_=."))
def test_digits_come_back(text: str) -> None:
    tokens = DIGITS.encode(text)
    assert len(tokens) == len(text)
    assert DIGITS.decode(tokens) == text


@pytest.mark.parametrize("tokenizer", [LETTERS, DIGITS], ids=["letters", "digits"])
@given(st.lists(st.integers(-1, 300)))
def test_any_tokens_have_a_text(tokenizer: ChatTokenizer, tokens: list[int]) -> None:
    assert isinstance(tokenizer.decode(tokens), str)


def test_tokens_that_are_none_become_a_replacement_character_each() -> None:
    assert LETTERS.decode([72, 256, 131_071, 105]) == "H\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}i"
    assert LETTERS.decode([0xE2, 0x82, 256]) == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert DIGITS.decode([3, 13, 1]) == "3\N{REPLACEMENT CHARACTER}1"


def test_digits_say_what_they_cannot_write() -> None:
    with pytest.raises(
        ValueError,
        match=r"^the policy reads digits, \"=\" and \"_\", and \"\.\" for the end; 'say 3' has others$",
    ):
        DIGITS.encode("say 3")


def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode='words'"):
        ChatTokenizer("words")
