"""Clients whose loop was dropped, and that are collected while another loop runs."""

from __future__ import annotations

from children import RunScript

DROPPED = """
    import asyncio, gc, importlib, os
    from areal_core import workflow_context

    new_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop

    async def make_clients():
        await workflow_context.get_control_session()
        await workflow_context.get_httpx_client()
        for key in (None, "a-key"):
            client = await workflow_context.get_openai_client("http://127.0.0.1:1/v1", api_key=key)
        return client

    async def collect():
        begun = []
        asyncio.get_running_loop().set_task_factory(
            lambda loop, coroutine, **options: begun.append(coroutine) or asyncio.Task(coroutine, loop=loop)
        )
        gc.collect()
        await asyncio.sleep(0)
        print(begun)

    dropped = new_loop()
    client = dropped.run_until_complete(make_clients())
    del dropped, client
    asyncio.run(collect())
"""


def test_what_is_collected_begins_nothing_on_the_loop_that_runs_then(run_script: RunScript) -> None:
    child = run_script(DROPPED, flags=())  # no warnings: that they were not closed is so
    assert (child.stdout, child.returncode) == ("[]\n", 0)
