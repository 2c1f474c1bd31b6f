"""Train agents as they are: their chat completions are recorded as the tokens that were sampled.

In an episode, with OpenAI's SDK:

```python
class Asking(RolloutWorkflow):
    async def arun_episode(self, engine, data):
        client = await workflow_context.get_openai_client()
        completion = await client.chat.completions.create(model="policy", messages=[...], tools=[...])
        ...
        return workflow_context.recorded().to_trajectory(reward)
```

Anywhere else, in any language, by an endpoint and a key for each episode: any object that has

```python
async def run(self, data, *, base_url, api_key, http_client) -> float: ...
```

is given to the executor in place of a workflow, which plays it as `AgentWorkflow` does. Either way the engine
is told how the model's chats are written: ``RemoteInfEngine(config, backend, chat=ChatFormat(tokenizer))``.
Messages become tokens here; those that the model sampled are used again as they are in the next turn, and
trained on as they are. See the package ``_agents`` for how it works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from areal_core._lazy import lazy

__all__ = [
    "Agent",
    "AgentWorkflow",
    "Call",
    "ChatFormat",
    "ChatTemplateError",
    "Recording",
    "Tokenizer",
    "ToolCall",
    "ToolCallParser",
]

if TYPE_CHECKING:
    from areal_core._agents.call import Call, ToolCall
    from areal_core._agents.chat_format import ChatFormat, ChatTemplateError, Tokenizer
    from areal_core._agents.recording import Recording
    from areal_core._agents.tool_calls import ToolCallParser
    from areal_core._agents.workflow import Agent, AgentWorkflow
else:  # a type checker that saw __getattr__ would let every misspelt name pass
    __getattr__, __dir__ = lazy(
        "areal_core",
        globals(),
        {
            "Agent": "_agents.workflow",
            "AgentWorkflow": "_agents.workflow",
            "Call": "_agents.call",
            "ChatFormat": "_agents.chat_format",
            "ChatTemplateError": "_agents.chat_format",
            "Recording": "_agents.recording",
            "Tokenizer": "_agents.chat_format",
            "ToolCall": "_agents.call",
            "ToolCallParser": "_agents.tool_calls",
        },
    )
