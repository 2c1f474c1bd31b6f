"""Generations that a server runs, whatever dialect asked for them.

::

    generations.py  all of them: gated, queued, running, ended; how a dialect uses them
    generation.py   one of them               started.py  those of one request
    drafts.py       tokens made ahead         agenda.py   one timer for all that is due
    clock.py        time without pauses       pace.py     how fast a request is
    log.py          what the server tells tests
"""
