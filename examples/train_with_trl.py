"""TRL's GRPOTrainer trains a policy on rollouts by areal_core, which go on while it takes its step.

    python examples/train_with_trl.py            # half a minute
    python examples/train_with_trl.py --quick    # a quarter of one: it learns, but not all of it

It needs the extra ``trl``, and downloads nothing. The task is that of train_with_torch.py; loss,
optimizer and training loop are TRL's. Where it meets areal_core:

```text
  rollout_func, a hook             TRL wants the answers of a step:  Rollouts, out of prepare_batch
  on_step_end, a callback          there are new weights:            HandOver, to the server
  _generate_and_score_completions  TRL's ratio, and its clipping:    OffPolicyTrainer, to who sampled
```

What is real: the policy that is trained generates, two versions later at the most, and its log-probabilities
are those of the sampler. What is not: the embedded server has one architecture, so `CountingLM` is that one
in the form that transformers gives to models; with SGLang or vLLM it is any of the Hub's, and `HandOver`
calls ``save_pretrained``. And TRL's own prompts of a step are answered by nobody: it is given the answers
to others of the same dataset, which `prepare_batch` took ahead. Model, tokenizer and task are in counting/.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from areal_core import RemoteInfEngine, WorkflowExecutor
from areal_core.embedded import EmbeddedServer, policy
from areal_core.trajectory import concat_padded_tensors

# Both are read at the import. TRL would warn that its hook for rollouts may change.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
try:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
except ModuleNotFoundError as error:
    print(f"needs {error.name}: pip install 'areal-core[trl]', or '.[trl]' in a checkout")
    sys.exit(0)

from counting.causal_lm import CountingConfig, CountingLM, make_tokenizer
from counting.table import Table
from counting.task import CONFIG, GCONFIG, GROUP, PROMPTS, CountOn, questions

STEPS, QUICK_STEPS = 100, 20


class Rollouts:
    """Gives TRL the answers for a step: those of the next batch, each with its reward."""

    def __init__(
        self, engine: RemoteInfEngine, executor: WorkflowExecutor, dataset: Dataset, steps: int
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._prompts = torch.utils.data.DataLoader(dataset, PROMPTS, shuffle=True, collate_fn=list)
        self._workflow = CountOn()
        self.table = Table(steps)

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Return a list per key, with a row for each answer; those to one prompt stand together."""
        batch = self._executor.prepare_batch(self._prompts, self._workflow, group_size=GROUP)
        self.table.add(batch, self._engine.get_version())
        rows = concat_padded_tensors(batch)
        begins = (rows["versions"] >= 0).int().argmax(1).tolist()  # a prompt ends at what was sampled first
        ends = rows["attention_mask"].sum(1).tolist()

        def cut(key: str) -> list[list[Any]]:
            return [row[a:b].tolist() for row, a, b in zip(rows[key], begins, ends, strict=True)]

        return {
            "prompt_ids": [row[:a].tolist() for row, a in zip(rows["input_ids"], begins, strict=True)],
            "completion_ids": cut("input_ids"),
            "logprobs": cut("logprobs"),
            "env_mask": cut("loss_mask"),  # 0 for what was told between replies, and for tokens too old
            "earned": rows["rewards"].tolist(),
        }


def reward(*, earned: list[float], **_: Any) -> list[float]:
    """Return what the answers have earned already, in their episodes."""
    return earned


class HandOver(TrainerCallback):
    """Hands the weights to the server after each step, as the version that has the step's number."""

    def __init__(self, engine: RemoteInfEngine, executor: WorkflowExecutor, weights: Path) -> None:
        self._engine = engine
        self._executor = executor
        self._weights = weights

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: CountingLM, **_: Any) -> None:
        """Write them, and have the server load them."""
        model.backbone.policy.save(self._weights, state.global_step)
        self._executor.runner.run(self._engine.update_weights_from_disk, self._weights, state.global_step)


class OffPolicyTrainer(GRPOTrainer):
    """Takes the ratio that is clipped to the policy that sampled.

    TRL takes it to the one before the step, and looks at the sampler's log-probabilities only where that is
    a vLLM of its own.
    """

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        scored["old_per_token_logps"] = scored["sampling_per_token_logps"]
        return scored


def settings(directory: str, steps: int) -> GRPOConfig:
    """Return how TRL is to train: a step has one batch, whole, and small as it is, on the CPU."""
    return GRPOConfig(
        output_dir=directory,
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * GROUP,
        gradient_accumulation_steps=1,
        num_generations=GROUP,
        max_completion_length=GCONFIG.max_new_tokens,
        learning_rate=0.008,
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        entropy_coef=0.05,
        activation_checkpointing=False,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def train(steps: int) -> bool:
    """Train a policy that knows nothing, and print how it goes; return whether all is as it should be."""
    tokenizer = make_tokenizer()
    items = [{**item, "prompt": tokenizer.decode(item["input_ids"])} for item in questions(640, 0)]
    dataset = Dataset.from_list(items)
    model = CountingLM(CountingConfig(pad_token_id=policy.PAD, eos_token_id=policy.END))
    with TemporaryDirectory() as directory:
        model.backbone.policy.save(weights := Path(directory, "weights.npz"), 0)
        with (
            EmbeddedServer(mode="policy", weights=weights, ms_per_token=2) as server,
            RemoteInfEngine(CONFIG) as engine,
            WorkflowExecutor(CONFIG, engine) as executor,
        ):
            engine.initialize(server.addr)
            rollouts = Rollouts(engine, executor, dataset, steps)
            trainer = OffPolicyTrainer(
                model,
                reward,
                settings(directory, steps),
                dataset,
                processing_class=tokenizer,
                rollout_func=rollouts,
                callbacks=[HandOver(engine, executor, weights)],
            )
            trainer.remove_callback(PrinterCallback)  # the table is enough
            trainer.train()
            return rollouts.table.end(executor)


def main() -> int:
    """Train, and return the exit status."""
    parser = argparse.ArgumentParser(description="Train a policy by TRL, asynchronously.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps instead of {STEPS}")
    steps = QUICK_STEPS if parser.parse_args().quick else STEPS
    # TRL asks a model for it by the name that transformers is about to drop.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one more would take the server's core
    # What it would warn of is that trainer and rollouts wait for each other on a busy machine.
    logging.getLogger("areal_core").setLevel(logging.ERROR)
    return 0 if train(steps) else 1


if __name__ == "__main__":
    sys.exit(main())
