"""What `areal_core.trajectory` is made of.

``arrays`` tells the kinds of values apart, ``checking`` judges one trajectory, ``joining`` makes one of
several, and ``dump`` writes them to files.
"""
