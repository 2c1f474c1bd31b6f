"""Agents that speak OpenAI's chat completions, recorded as the tokens that the model read and sampled.

::

    agent                       door                                              servers
    in an episode  --httpx-->   local_transport  --.
      get_openai_client()                          |   Completer              RemoteInfEngine
    in a program   --HTTP--->   gateway, session --+-> body -> prompt tokens -> agenerate ----> tokens in,
      base_url, api_key                            |   message <- tokens     <-                 tokens out
                                                   |       |
                                              scope: the episode's engine and its Recording
                                                           |
                                                   joining: rows -> a trajectory for the trainer

    in an episode  --httpx-->   listening_transport ------------------------------------------> any server's
      get_openai_client(url)      records what comes back, token ids and all                    own chats

    scope.py           whose call it is                call.py          one call, as tokens
    request.py         what a body asks for            reply.py         what it is told, whole or streamed
    completer.py       one chat completion             speaking.py      tokens to text, as they come
    conversation.py    messages to tokens: those that were sampled are used again as they are
    chat_format.py     a tokenizer and its template    tool_calls.py    text to tool calls
    recording.py       the calls of an episode         joining.py       which of them continue which
    gateway.py         HTTP for agents elsewhere       session.py       one episode's part of it
    clients.py         the SDK's clients of a loop     workflow.py      an agent as a workflow
    sdk.py             OpenAI's SDK, whole: nothing of it is imported on the loop
"""
