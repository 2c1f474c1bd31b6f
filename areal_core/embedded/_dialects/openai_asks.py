"""OpenAI's dialect: what a body of ``/v1/completions`` or ``/v1/chat/completions`` asks for.

The fields that vLLM and SGLang add to OpenAI's are among them, with vLLM's meaning. Fields that this server
cannot honour are refused where the reply would lack something or have something else in it; those that
only shape the distribution of the tokens are checked and, most of them, change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from areal_core.embedded._checks import BadRequestError, integer, mapping, string, token_ids
from areal_core.embedded._dialects.asked import flag, given, read_sampling, refuse_unless, seed
from areal_core.embedded._dialects.chat import Chat
from areal_core.embedded._generating.generation import Ask
from areal_core.embedded._models.model import Model
from areal_core.embedded._models.tokens import Sampling

_REFUSED_UNLESS: Mapping[str, tuple[object, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": (None, ""),
    "prompt_logprobs": (None,),
    "prompt_embeds": (None,),
    "logit_bias": (None, {}),
    "use_beam_search": (False, None),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "audio": (None,),
    "modalities": (None, ["text"]),
}
# OpenAI's limits; a token has no alternatives here, so that more would change nothing.
_MOST_LOGPROBS = 20
_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Order:
    """A request: what to generate, and how to show it."""

    ask: Ask
    model: str
    """The name of the model, as the client gave it."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with the numbers of tokens."""
    logprobs: bool = False
    alternatives: int = 0
    """Of how many tokens beside the one that was drawn the log-probabilities were asked for."""
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    """Whether a token is ``"token_id:123"`` where it would be a text."""
    skip_special_tokens: bool = True
    include_stop: bool = False
    """Whether the text has the token or the string that ended it."""


class Asks:
    """Read what clients ask for; *name* is the model for those that name none."""

    def __init__(self, model: Model, chat: Chat, name: str, new_id: Callable[[], str]) -> None:
        self._model = model
        self._chat = chat
        self._name = name
        self._new_id = new_id

    def completion(self, body: Any) -> Order:
        """Return what a completion asks for. Raises BadRequestError, and PromptError."""
        fields = self._fields(body)
        prompt = self._prompt(fields.get("prompt"))
        alternatives = fields.get("logprobs")
        if alternatives is not None:
            alternatives = integer("logprobs", alternatives, 0, _MOST_LOGPROBS)
        return self._order(
            fields,
            prompt,
            given(fields, "max_tokens", _COMPLETION_TOKENS),
            alternatives is not None,
            alternatives,
        )

    def chat(self, body: Any) -> Order:
        """Return what a chat asks for. Raises BadRequestError, and PromptError."""
        fields = self._fields(body)
        prompt = self._chat.prompt(fields.get("messages"))
        logprobs = flag("", fields, "logprobs", False)
        alternatives = integer("top_logprobs", given(fields, "top_logprobs", 0), 0, _MOST_LOGPROBS)
        if alternatives and not logprobs:
            raise BadRequestError("top_logprobs", alternatives, "needs logprobs=true")
        most = given(fields, "max_completion_tokens", fields.get("max_tokens"))
        if most is None:
            most = max(1, self._model.room(prompt))  # as many as fit
        return self._order(fields, prompt, most, logprobs, alternatives)

    def _fields(self, body: Any) -> dict[str, Any]:
        fields = mapping("body", body)
        refuse_unless(fields, _REFUSED_UNLESS)
        return fields

    def _order(
        self,
        fields: Mapping[str, Any],
        prompt: Sequence[int],
        most: Any,
        logprobs: bool,
        alternatives: int | None,
    ) -> Order:
        rid = fields.get("request_id")
        options = mapping("stream_options", given(fields, "stream_options", {}))
        return Order(
            Ask(
                self._new_id() if rid is None else string("request_id", rid),
                prompt,
                sampling_of("", fields, most, self._model.room(prompt)),
            ),
            string("model", given(fields, "model", self._name)),
            stream=flag("", fields, "stream", False),
            include_usage=flag("stream_options.", options, "include_usage", False),
            logprobs=logprobs,
            alternatives=alternatives or 0,
            return_token_ids=flag("", fields, "return_token_ids", False),
            tokens_as_ids=flag("", fields, "return_tokens_as_token_ids", False),
            skip_special_tokens=flag("", fields, "skip_special_tokens", True),
            include_stop=flag("", fields, "include_stop_str_in_output", False),
        )

    def _prompt(self, prompt: Any) -> Sequence[int]:
        """Return the one prompt: a text, its tokens, or a list of one of those."""
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, list):
            if not prompt or isinstance(prompt[0], str | list):
                raise BadRequestError("prompt", prompt, "is not one prompt; send a request for each")
            return token_ids("prompt", prompt)
        return self._model.encode(string("prompt", prompt))


def sampling_of(where: str, fields: Mapping[str, Any], most: Any, room: int) -> Sampling:
    """Return how to generate, with at most *most* tokens; *where* stands before the names in errors.

    There are no more than the *room* allows, but has to be room for one. Raises BadRequestError.
    """
    longest = integer(f"{where}max_tokens", most, 1, 2**31)
    if not room:
        raise BadRequestError(f"{where}max_tokens", longest, "has no room after so long a prompt")
    return Sampling(
        max_new_tokens=longest,
        min_new_tokens=integer(f"{where}min_tokens", given(fields, "min_tokens", 0), 0, longest),
        seed=seed(f"{where}seed", fields.get("seed")),
        **read_sampling(where, fields),
    )
