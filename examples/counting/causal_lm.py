"""The policy as transformers has its models, and a tokenizer for it; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from counting.torch_policy import Policy


class Backbone(nn.Module):
    """The policy without its last layer, which TRL multiplies by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Return what is unembedded; there is no padding before a prompt but the policy's own."""
        if not attention_mask[:, 0].all():
            raise ValueError("a prompt is shorter than others; give all as policy.place() makes them")
        return BaseModelOutput(last_hidden_state=self.policy.hidden(input_ids))


class CountingConfig(PreTrainedConfig):
    """That of `CountingLM`, which has one size."""

    model_type = "counting"


class CountingLM(PreTrainedModel, GenerationMixin):
    """The policy as a causal language model of transformers."""

    config_class = CountingConfig
    base_model_prefix = "backbone"

    def __init__(self, config: CountingConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone()
        self.post_init()

    def _init_weights(self, module: object) -> None:
        """Leave them as torch has drawn them."""

    def get_output_embeddings(self) -> nn.Linear:
        """Return the last layer."""
        return self.backbone.policy.unembedding

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> CausalLMOutput:
        """Return the logits of the token that follows each."""
        hidden = self.backbone(input_ids, attention_mask).last_hidden_state
        return CausalLMOutput(logits=self.backbone.policy.unembedding(hidden))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return one for the policy's tokens, each of which is a letter, but for the end."""
    words = [*"0123456789_=", "<end>"]
    tokenizer = Tokenizer(models.WordLevel({word: token for token, word in enumerate(words)}, "_"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="_", eos_token="<end>")
