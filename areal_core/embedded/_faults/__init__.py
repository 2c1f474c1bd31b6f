"""Misbehaviour on demand; the words for it are in `_fault_script`.

::

    faults.py       which request is struck, and how
    bodies.py       spoilt replies            writers.py    replies cut off in the middle
"""
