"""What `areal_core.offload` is made of.

offload.py     checks what may be offloaded, waits for one call, and says what became of it
   |
crew.py        of one loop: threads, and worker processes; ends with the loop
   |
lane.py        threads that make calls, and whose turn it is
   |   in such a thread
worker.py      one worker process as its parent sees it: start, exchange, kill
   |   a socket
child.py       the worker process itself; a script that imports nothing of this package

stats.py       how many workers there are, and how many calls are made, or wait
shortage.py    tells of calls that wait for long
"""

from __future__ import annotations
