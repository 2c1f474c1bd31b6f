"""Where tokens come from.

::

    model.py        what a model is           choice.py   which one a server has
    letters.py      modes "text" and "test"   transformer.py  mode "policy"
    tokens.py       sampling, and what ends it
    weights.py      versions, labels and files of weights
"""
