"""A policy in PyTorch learns to count on: a training loop as you have one, with its rollouts by areal_core.

    python examples/train_with_torch.py            # half a minute
    python examples/train_with_torch.py --quick    # a few seconds: it learns, but not all of it

It needs the extra ``torch``. ``345=`` is to be answered by ``678`` and the end. The model is torch's, and
so are loss, optimizer, DataLoader, and the tensors of a batch. After each step the parameters are written
in the embedded server's format: what is trained is what generates, two versions later at the most. The
exit status is 1 if the reward has not risen, or a prompt was lost. Model and task are in counting/.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from areal_core import RemoteInfEngine, WorkflowExecutor
from areal_core.embedded import EmbeddedServer
from areal_core.trajectory import concat_padded_tensors

try:
    import torch
    from torch import nn
except ModuleNotFoundError as error:
    print(f"needs {error.name}: pip install 'areal-core[torch]', or '.[torch]' in a checkout")
    sys.exit(0)

from counting.table import Table
from counting.task import CONFIG, GROUP, PROMPTS, CountOn, Trajectory, questions
from counting.torch_policy import Policy

STEPS, QUICK_STEPS = 140, 20
MINIBATCHES = 2
RATE, CLIP, ENTROPY_BONUS = 0.004, 0.2, 0.05


def learn(model: Policy, optimizer: torch.optim.Optimizer, batch: Sequence[Trajectory]) -> None:
    """Go over *batch* once, in minibatches; each of its trajectories has all answers to one prompt."""
    rows = concat_padded_tensors(batch)
    rows["advantages"] = torch.cat([advantages_of(group["rewards"]) for group in batch])
    for chosen in torch.randperm(len(rows["input_ids"])).chunk(MINIBATCHES):
        optimizer.zero_grad()
        loss_of(model, {key: tensor[chosen] for key, tensor in rows.items()}).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def advantages_of(rewards: torch.Tensor) -> torch.Tensor:
    """Return GRPO's: how much better each answer is than the others to its prompt, in deviations."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-6)


def loss_of(model: Policy, rows: Trajectory) -> torch.Tensor:
    """Return PPO's loss; the ratio is to the policy that sampled the token, whichever version that was."""
    tokens, mask = rows["input_ids"][:, 1:], rows["loss_mask"][:, 1:]
    logs = model(rows["input_ids"])[:, :-1].log_softmax(-1)
    current, behaviour = logs.gather(-1, tokens[..., None])[..., 0], rows["logprobs"][:, 1:]
    ratio, advantages = (current - behaviour).exp(), rows["advantages"][:, None]
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    entropy = -(logs.exp() * logs).sum(-1)
    return -((gain + ENTROPY_BONUS * entropy) * mask).sum() / mask.sum().clamp(min=1)


def train(model: Policy, steps: int) -> bool:
    """Train *model*, and print how it goes; return whether all is as it should be."""
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prompts = torch.utils.data.DataLoader(questions(640, 0), PROMPTS, shuffle=True, collate_fn=list)
    workflow, table = CountOn(), Table(steps)
    with TemporaryDirectory() as directory:
        model.save(weights := Path(directory, "weights.npz"), 0)
        with (
            EmbeddedServer(mode="policy", weights=weights, ms_per_token=2) as server,
            RemoteInfEngine(CONFIG) as engine,
            WorkflowExecutor(CONFIG, engine) as executor,
        ):
            engine.initialize(server.addr)
            for step in range(1, steps + 1):
                batch = executor.prepare_batch(prompts, workflow, group_size=GROUP)
                table.add(batch, engine.get_version())
                learn(model, optimizer, batch)
                schedule.step()
                model.save(weights, step)
                executor.runner.run(engine.update_weights_from_disk, weights, step)
            return table.end(executor)


def main() -> int:
    """Train a policy that knows nothing; return the exit status."""
    parser = argparse.ArgumentParser(description="Train a policy in PyTorch, asynchronously.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps instead of {STEPS}")
    steps = QUICK_STEPS if parser.parse_args().quick else STEPS
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one more would take the server's core
    # What it would warn of is that trainer and rollouts wait for each other on a busy machine.
    logging.getLogger("areal_core").setLevel(logging.ERROR)
    return 0 if train(Policy(), steps) else 1


if __name__ == "__main__":
    sys.exit(main())
