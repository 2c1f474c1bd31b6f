"""The words of inference servers: SGLang's, vLLM's and OpenAI's, all at once.

::

    dialect.py      what a dialect is         asked.py      what all are asked in the same words
    sglang*.py      asks, replies, control    vllm.py       on top of OpenAI's completions
    openai*.py      asks, replies             chat.py       a small chat template
"""
