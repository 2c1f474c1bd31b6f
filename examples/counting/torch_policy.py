"""The policy in torch: `Policy`, which the embedded server can read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from areal_core.embedded import policy


class Policy(nn.Module):
    """The transformer that `areal_core.embedded.policy` describes, in torch."""

    def __init__(self) -> None:
        super().__init__()
        for name, (inputs, outputs) in policy.SHAPES.items():
            is_table = name in ("embedding", "position")
            layer = nn.Embedding(inputs, outputs) if is_table else nn.Linear(inputs, outputs, bias=False)
            self.add_module(name, layer)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what is unembedded, B, T, 64, for *tokens*, B, T; what comes later changes nothing."""
        embedded = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        query, key, value = self.query(embedded), self.key(embedded), self.value(embedded)
        attended = embedded + nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return attended + self.mlp_out(self.mlp_in(attended).relu())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the token that follows each, B, T, 13."""
        return self.unembedding(self.hidden(tokens))

    def save(self, path: Path, version: int) -> None:
        """Write the parameters as the embedded server reads them: its matrices are torch's transposed."""
        arrays = {}
        for name, layer in self.named_children():
            weight = layer.weight.detach().numpy()
            arrays[name] = weight if isinstance(layer, nn.Embedding) else weight.T
        policy.save(path, arrays, version)
