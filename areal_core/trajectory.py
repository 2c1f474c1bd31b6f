"""Trajectories: what an episode yields and a trainer is given.

A trajectory is a dict of arrays. Its batch is one sample from a workflow, and all members of a group after
`concat_padded_tensors`. Two keys are always there, four more have a meaning, and any other is the user's:

| Key | Shape | Entries |
|---|---|---|
| `input_ids` | `[batch, seqlen]`, integers | the tokens, prompt and replies |
| `attention_mask` | `[batch, seqlen]`, integers or bools | 1 for tokens, 0 for padding |
| `loss_mask` | `[batch, seqlen]`, numbers or bools | 0 for tokens that are not trained |
| `logprobs` | `[batch, seqlen]`, floats | with which each token was sampled; 0 for the prompt's |
| `versions` | `[batch, seqlen]`, signed integers | the policy that made each token; -1 for the prompt's |
| `rewards` | `[batch]` or `[batch, seqlen]`, numbers | one per sample, or one per token |
| any other | `[batch, ...]` or `[batch, seqlen, ...]` | numbers or bools |

The arrays are NumPy's or torch's, all of one kind. What is no array, such as images, goes under a key of
its own as a list with one entry per sample.
"""

from __future__ import annotations

from areal_core._trajectory.checking import TrajectoryShape, check_trajectory_format
from areal_core._trajectory.dump import TrajectoryDump
from areal_core._trajectory.joining import concat_padded_tensors

__all__ = ["TrajectoryDump", "TrajectoryShape", "check_trajectory_format", "concat_padded_tensors"]
