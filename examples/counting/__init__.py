"""What train_with_torch.py and train_with_trl.py share: a policy in torch that learns to count on.

```text
  task.py         what is asked, what an answer is worth, and the workflow
  torch_policy.py the embedded server's transformer in torch
  causal_lm.py    the same as a model of transformers, and its tokenizer
  table.py        what is printed
```
"""
