"""HTTP clients, one set per event loop, on one connection pool.

    get_aiohttp_session() ----.                                 .--> data pool
    get_httpx_client() --> transport --> HttpClientManager -----|
    get_control_session() ----'          (lives on its loop)    '--> control pool

`config` says how they behave, `clients` holds them, `descriptors` makes room for them; `pool` (aiohttp) and
`transport` (httpx on top of it, with `upload` for what it sends) make them. These are imported on first use,
by `first_import`: importing aiohttp and httpx takes 0.3 s.
"""

from __future__ import annotations
