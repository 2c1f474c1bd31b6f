"""What `areal_core.offload` is made of.

offload.py     checks what may be offloaded, waits for one call, and says what became of it
   |
crew.py        of one loop: threads, worker processes, and whose turn it is; ends with the loop
   |   in a thread of the crew
worker.py      one worker process as its parent sees it: start, exchange, kill
   |   a socket
child.py       the worker process itself; a script that imports nothing of this package
"""

from __future__ import annotations
