"""How chats are written: what a template is given, what of that is refused, what a tokenizer must have."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from areal_core._agents.chat_format import ChatFormat, ChatTemplateError
from areal_core._agents.conversation import Conversations
from areal_core._agents.speaking import Speaker, read_reply
from areal_core.types import GenerationHyperparameters
from small_tokenizer import END, OTHER_END, SmallTokenizer, sampled, turn

USER = {"role": "user", "content": "hi"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class Given(SmallTokenizer):
    """Keeps what its template is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def apply_chat_template(
        self, conversation: Sequence[dict[str, Any]], tools: Any = None, **rest: Any
    ) -> Any:
        self.given = {"conversation": conversation, "tools": tools, **rest}
        return "text"


def given(message: dict[str, Any]) -> dict[str, Any]:
    """Return what a template is given for *message*."""
    tokenizer = Given()
    before = copy.deepcopy(message)
    assert ChatFormat(tokenizer).text([message], generation_prompt=False) == "text"
    assert message == before
    (found,) = tokenizer.given["conversation"]
    return dict(found)


def called(arguments: Any, **message: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call], **message}


def text_of(*messages: Any, tokenizer: Any = None, **kwargs: Any) -> str:
    return ChatFormat(tokenizer or SmallTokenizer()).text(messages, None, kwargs, generation_prompt=True)


def test_messages_tools_and_kwargs_are_written_by_the_template() -> None:
    chat = ChatFormat(SmallTokenizer())
    assert chat.text([USER], generation_prompt=False) == turn("user", "hi")
    assert chat.text([USER], TOOLS, {"day": 3}, generation_prompt=True) == (
        turn("system", json.dumps({"tools": TOOLS, "day": 3}))
        + turn("user", "hi")
        + "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_none(tools: Any) -> None:
    tokenizer = Given()
    ChatFormat(tokenizer).text([USER], tools, generation_prompt=True)
    assert tokenizer.given["tools"] is None


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"a": {"b": [1, 2.5, "é"]}}', {"a": {"b": [1, 2.5, "é"]}}),
        ("{}", {}),
        ({"a": 1}, {"a": 1}),
        ("", ""),
        ("{", "{"),
        ("[1]", "[1]"),
        ('"a"', '"a"'),
        (9_000 * "[", 9_000 * "["),
    ],
    ids=range(8),
)
def test_arguments_that_are_objects_are_given_as_such(arguments: Any, written: Any) -> None:
    call = given(called(arguments))["tool_calls"][0]
    assert call == {"id": "c1", "type": "function", "function": {"name": "add", "arguments": written}}


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (USER, USER),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         {"role": "user", "content": "ab"}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "developer", "content": "Do."}, {"role": "system", "content": "Do."}),
        ({"role": "assistant", "content": None, "refusal": None, "tool_calls": None},
         {"role": "assistant", "content": ""}),
        ({"role": "assistant", "tool_calls": []}, {"role": "assistant", "content": ""}),
        ({"role": "tool", "tool_call_id": "c1", "content": "3", "name": "add"},
         {"role": "tool", "tool_call_id": "c1", "content": "3", "name": "add"}),
        (called({}), called({}, content=None)),
        (called({}, content=""), called({}, content=None)),
        (called({}, content="So:"), called({}, content="So:")),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "c", "custom": {"input": "x"}}]},
         {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "custom": {"input": "x"}}]}),
    ],
    ids=range(11),
)  # fmt: skip
def test_messages_are_given_as_templates_know_them(message: dict[str, Any], fields: dict[str, Any]) -> None:
    assert given(message) == fields


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]},
         "a message has content of the type 'image_url'; only text can be written"),
        ({"role": "user", "content": ["a"]},
         "a message has content of the type 'str'; only text can be written"),
        ({"role": "user", "content": [{"type": "text"}]},
         "a message has content of the type 'text'; only text can be written"),
        ({"role": "user", "content": 7}, "a message has 7 as its content; give a text"),
        ({"content": "a"}, "the message {'content': 'a'} has no role; give one"),
        ("a", "the message 'a' has no role; give one"),
        ({"role": "assistant", "tool_calls": {"a": 1}},
         "a message has tool_calls={'a': 1}; give a list of calls"),
        ({"role": "assistant", "tool_calls": ["a"]}, "a message has tool_calls=['a']; give a list of calls"),
    ],
    ids=range(8),
)  # fmt: skip
def test_messages_that_templates_do_not_know_are_refused(message: Any, says: str) -> None:
    with pytest.raises(ChatTemplateError) as refused:
        text_of(message)
    assert str(refused.value) == says


class Failing(SmallTokenizer):
    """Does something else than it should."""

    def __init__(self, error: Exception | None = None, text: Any = "\ud800") -> None:
        super().__init__()
        self.error = error
        self.written = text

    def apply_chat_template(self, conversation: Any, tools: Any = None, **rest: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self.written


@pytest.mark.parametrize(
    ("error", "words"),
    [(RuntimeError("roles must alternate"), "roles must alternate"), (KeyError(), "KeyError")],
    ids=["words", "no-words"],
)
def test_what_a_template_raises_is_told(error: Exception, words: str) -> None:
    with pytest.raises(ChatTemplateError) as refused:
        text_of(USER, tokenizer=Failing(error))
    assert str(refused.value) == f"the chat template cannot write these messages: {words}"
    assert refused.value.__cause__ is error


def test_kwargs_that_are_not_the_templates_are_refused() -> None:
    with pytest.raises(ChatTemplateError, match="multiple values for keyword argument 'tokenize'"):
        text_of(USER, tokenize=True)


def test_a_template_that_gives_no_text_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="the chat template gave a list, which is no text"):
        text_of(USER, tokenizer=Failing(text=[1, 2]))


def test_text_that_has_no_tokens_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="the tokenizer cannot encode these messages: 'utf-8' codec"):
        ChatFormat(SmallTokenizer()).encode("\ud800")


def test_tokens_are_shown_with_special_ones_and_decoded_without() -> None:
    chat = ChatFormat(SmallTokenizer())
    tokens = [OTHER_END, *sampled("é")]
    assert (chat.decode(tokens), chat.shown(tokens)) == ("é", "<|endoftext|>é<|im_end|>")
    assert chat.encode("<|im_end|>ab") == [END, *SmallTokenizer().encode("ab", add_special_tokens=False)]


class Tidying(SmallTokenizer):
    """Takes spaces out unless told not to."""

    clean_up_tokenization_spaces = True

    def decode(
        self,
        token_ids: Iterable[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool = True,
    ) -> Any:
        text = super().decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text.replace(" .", ".") if clean_up_tokenization_spaces else text


def test_nothing_is_taken_out_of_what_the_model_wrote() -> None:
    assert ChatFormat(Tidying()).decode(sampled("a .")) == "a ."


def without(name: str) -> Any:
    return type("Tokenizer", (SmallTokenizer,), {name: None})()


def with_(**fields: Any) -> Any:
    return type("Tokenizer", (SmallTokenizer,), fields)()


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (object(), "tokenizer, a object, has no method apply_chat_template; give one like Hugging Face's"),
        (without("encode"), "tokenizer, a Tokenizer, has no method encode; give one like Hugging Face's"),
        (without("decode"), "tokenizer, a Tokenizer, has no method decode; give one like Hugging Face's"),
        (with_(chat_template=None),
         "tokenizer, a Tokenizer, has no chat_template; set the one the model was taught with"),
        (with_(eos_token=None),
         "tokenizer, a Tokenizer, has eos_token=None; set the one that its chat template ends a reply with"),
        (with_(eos_token=""),
         "tokenizer, a Tokenizer, has eos_token=''; set the one that its chat template ends a reply with"),
        (with_(eos_token_id=None),
         "tokenizer.eos_token_id=None is not an int; give an integer of at least 0"),
    ],
    ids=["nothing", "encode", "decode", "template", "eos", "empty-eos", "eos-id"],
)  # fmt: skip
def test_what_is_no_tokenizer_of_chats_is_refused(tokenizer: Any, says: str) -> None:
    with pytest.raises(TypeError) as refused:
        ChatFormat(tokenizer)
    assert str(refused.value) == says


def test_what_else_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="tool_calls='llama' is none of 'hermes', 'none'"):
        ChatFormat(SmallTokenizer(), "llama")
    with pytest.raises(ValueError, match="gconfig has n_samples=2"):
        ChatFormat(SmallTokenizer(), gconfig=GenerationHyperparameters(n_samples=2))
    with pytest.raises(TypeError, match="is not a GenerationHyperparameters"):
        ChatFormat(SmallTokenizer(), gconfig={"temperature": 1})  # type: ignore[arg-type]


def test_it_says_what_it_was_given() -> None:
    gconfig = GenerationHyperparameters(temperature=0.5)
    chat = ChatFormat(SmallTokenizer(), gconfig=gconfig)
    assert (chat.eos_text, chat.eos_id, chat.gconfig) == ("<|im_end|>", END, gconfig)
    assert chat.parser.opening == "<tool_call>"
    assert ChatFormat(SmallTokenizer(), "none").parser.opening is None
    assert ChatFormat(SmallTokenizer()).gconfig == GenerationHyperparameters()


QWEN = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- endif %}
{{- '\\n\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{%- for tool_call in message.tool_calls %}
{%- set tool_call = tool_call.function %}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
{{- tool_call.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def test_with_a_tokenizer_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    tokenizer = byte_level_tokenizer(pytest.importorskip("tokenizers"), transformers)
    chat = ChatFormat(tokenizer)
    said = 'Zürich 😀 ?\n<tool_call>\n{"name":"add","arguments":{"in":"Zürich"}}\n</tool_call>'
    reply = [tokenizer.convert_tokens_to_ids(char) for char in as_byte_level(said)] + [chat.eos_id]
    assert len(chat.encode(said)) < len(reply) - 1
    assert (chat.decode(reply), chat.shown(reply)) == (said, f"{said}<|im_end|>")

    speaker = Speaker(chat)
    streamed = "".join(speaker.hear([token]) for token in reply)
    assert streamed == "Zürich 😀 ?"
    assert speaker.end() == ("", streamed, [("add", '{"in":"Zürich"}')])
    assert read_reply(chat, reply) == (streamed, [("add", '{"in":"Zürich"}')])

    conversations = Conversations()
    prompt = conversations.prompt(chat, [USER], TOOLS, {})
    assert prompt.tokens == chat.encode(chat.text([USER], TOOLS, generation_prompt=True))
    told = called('{"in":"Zürich"}', content=streamed)
    conversations.remember(prompt, reply, told)
    answer = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    behind = "\n<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    after = conversations.prompt(chat, [USER, told, answer], TOOLS, {}).tokens
    assert after == prompt.tokens + reply + chat.encode(behind)
    with pytest.raises(ChatTemplateError, match="cannot write these messages: no"):
        chat.text([USER], None, {"chat_template": "{{ raise_exception('no') }}"}, generation_prompt=True)


def byte_level_tokenizer(tokenizers: Any, transformers: Any) -> Any:
    """Return a tokenizer like Qwen's, of few words."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(20 * ["what is the weather in Zürich tonight"], trainer)
    inner.add_tokens([tokenizers.AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        chat_template=QWEN,
        clean_up_tokenization_spaces=True,
    )


def as_byte_level(text: str) -> str:
    """Return a character for each byte of *text*, the one that byte-level tokenizers have for it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    char_of = {byte: chr(byte) for byte in printable}
    char_of |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return "".join(char_of[byte] for byte in text.encode())
