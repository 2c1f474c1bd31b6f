"""Workflows to use, or to read before you write your own.

```python
workflow = SingleTurnWorkflow(is_right, GenerationHyperparameters(max_new_tokens=1024))
batch = executor.prepare_batch(prompts, workflow, group_size=8)
```

`SingleTurnWorkflow` asks once; `MultiTurnWorkflow` says what was wrong and asks again. Both keep to tokens:
text is made into tokens at most once, and never made of tokens and back. `Transcript` is what they write the
conversation into; it makes the trajectory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from areal_core._lazy import lazy

__all__ = ["MultiTurnWorkflow", "SingleTurnWorkflow", "Transcript"]

if TYPE_CHECKING:
    from areal_core.workflows.multi_turn import MultiTurnWorkflow
    from areal_core.workflows.single_turn import SingleTurnWorkflow
    from areal_core.workflows.transcript import Transcript
else:  # a type checker that saw __getattr__ would let every misspelt name pass
    __getattr__, __dir__ = lazy(
        __name__,
        globals(),
        {
            "MultiTurnWorkflow": "multi_turn",
            "SingleTurnWorkflow": "single_turn",
            "Transcript": "transcript",
        },
    )
