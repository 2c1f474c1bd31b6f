"""One chat completion, as tokens: `Call`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model wants done by a tool."""

    id: str
    """The tool's answer names it."""

    name: str

    arguments: str
    """JSON, as the model wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One chat completion: what the model read, what it sampled, and what the agent was told of that.

    What was said is not in its repr. Raises ValueError unless its lists of output have one length.
    """

    id: str
    """The completion's: ``"chatcmpl-..."``."""

    prompt_tokens: list[int] = field(repr=False)
    """All that the model read. Like the other lists it is not changed any more."""

    output_tokens: list[int] = field(repr=False)
    """As sampled, the end token included if it was."""

    output_logprobs: list[float] = field(repr=False)
    """The log-probability with which each token was sampled, natural logarithm."""

    output_versions: list[int] = field(repr=False)
    """The oldest policy version that can have made each token."""

    versions_exact: bool
    """Whether those are the versions that made them, not only bounds from below."""

    finish_reason: str
    """``"stop"``, ``"length"`` or ``"tool_calls"``."""

    content: str | None = field(repr=False)
    """The text; None: there was none besides the tool calls."""

    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)

    began: float
    """When it was asked for, in monotonic seconds."""

    ended: float
    """When its last token was there, in monotonic seconds."""

    segments: int = 1
    """In how many uninterrupted pieces it was generated."""

    def __post_init__(self) -> None:
        lengths = {len(self.output_tokens), len(self.output_logprobs), len(self.output_versions)}
        if len(lengths) > 1:
            raise ValueError(
                f"the call {self.id!r} has {len(self.output_tokens)} output_tokens, "
                f"{len(self.output_logprobs)} output_logprobs and {len(self.output_versions)} "
                "output_versions; give one of each per token"
            )
