"""Who keeps an event loop from turning: watched by a thread beside it. And what a task waits for.

loop_watch.py       posts heartbeats to the loop, and looks when one is late (a picture comes first)
   |
looks.py            what the looks found, and who is blamed: `Blocked`
   |
lateness.py         who is blamed of a loop that is late by many short calls: `Late`
   |
blame.py            who was last found: `Blame`, for views
   |
user_frames.py      which of a thread's frames are the user's code, and their names

awaited.py          what a task awaits, as text, for those who ask why it takes so long

processor_time.py   whether a thread computed or waited: Linux tells
"""

from __future__ import annotations
