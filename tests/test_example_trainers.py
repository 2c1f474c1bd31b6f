"""The examples with trainers that people have: they learn, lose nothing, and say what they need."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from children import RunScript

pytestmark = pytest.mark.any_loop

EXAMPLES = Path(__file__).parent.parent / "examples"
TRAINERS = {"torch": "train_with_torch.py", "trl": "train_with_trl.py"}

AS_A_READER_DOES = """
    import runpy, sys

    missing, path, *sys.argv[1:] = sys.argv[1:]
    sys.path.insert(0, path.rpartition("/")[0])
    if missing:
        sys.modules[missing] = None
    runpy.run_path(path, run_name="__main__")
"""

# What NumPy makes of the parameters that were written, beside torch.
BOTH_POLICIES = """
    import sys
    from pathlib import Path

    import numpy as np

    sys.path.insert(0, sys.argv[1])
    import torch
    from areal_core.embedded import policy
    from counting.torch_policy import Policy

    model, path = Policy(), Path("weights.npz")
    model.save(path, 7)
    version, parameters = policy.load(path)
    tokens = np.array([[10, 10, 4, 5, 6, 7, 11, 8, 9, 0, 12], [10] * 5 + [1, 11, 2, 12, 10, 10]])
    with torch.no_grad():
        here = model(torch.from_numpy(tokens)).numpy()
    print(version, abs(here - policy.run(parameters, tokens).logits).max() < 1e-4)
"""

# Of one token, which is now as likely as when it was sampled, or twice, or half.
GAINS = """
    import sys

    sys.path.insert(0, sys.argv[1])
    import torch
    import train_with_torch as example
    from counting.torch_policy import Policy

    torch.manual_seed(0)
    example.ENTROPY_BONUS = 0.0
    model, tokens = Policy(), torch.tensor([[10, 10, 4, 5, 6, 7, 11, 8, 9]])
    with torch.no_grad():
        logs = model(tokens).log_softmax(-1)
        now = torch.zeros(1, 9).index_put((torch.tensor([0]), torch.tensor([7])), logs[0, 6, 8])

    for likelier, advantage, trained in ((1, 1, 1), (2, 1, 1), (0.5, 1, 1), (0.5, -1, 1), (2, 1, 0)):
        mask = torch.zeros(1, 9, dtype=torch.int32)
        mask[0, 7] = trained
        rows = {
            "input_ids": tokens,
            "loss_mask": mask,
            "logprobs": now - torch.tensor(likelier).log(),
            "advantages": torch.tensor([advantage]),
        }
        model.zero_grad()
        loss = example.loss_of(model, rows)
        loss.backward()
        moves = sum(float(one.grad.abs().sum()) for one in model.parameters() if one.grad is not None)
        print(round(loss.item(), 3) + 0.0, moves > 1e-6)
"""

# What TRL computes of the tokens that a batch has, beside what the sampler said.
TRL_BESIDE_THE_SAMPLER = """
    import sys, warnings

    sys.path.insert(0, sys.argv[1])
    import train_with_trl as example
    import torch

    class Comparing(example.OffPolicyTrainer):
        def _generate_and_score_completions(self, inputs):
            scored = super()._generate_and_score_completions(inputs)
            tokens = torch.cat([scored["prompt_ids"], scored["completion_ids"]], 1)
            mask = torch.cat([scored["prompt_mask"], scored["completion_mask"]], 1)
            asked = scored["completion_ids"].shape[1]
            with torch.no_grad():
                own, *_ = self._get_per_token_logps_and_entropies(self.model, tokens, mask, asked)
            apart = (own - scored["old_per_token_logps"]) * scored["completion_mask"]
            print("apart", float(apart.abs().max()))
            return scored

    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    example.OffPolicyTrainer = Comparing
    example.train(5)
"""

RunExample = Callable[[str], str]


def needs(*modules: str) -> None:
    """Skip the test where one of *modules* is not installed; none is imported, for that takes seconds."""
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.fixture
def run_example(run_script: RunScript) -> RunExample:
    """Run an example in its quick form, see that it complains of nothing, and return what it printed."""

    def run(name: str) -> str:
        # Not in asyncio's debug mode: that says of each step of training how long it held the loop up.
        path = str(EXAMPLES / name)
        done = run_script(AS_A_READER_DOES, "", path, "--quick", timeout=280.0, flags=("-W", "error"))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.mark.parametrize("extra", TRAINERS)
def test_where_torch_is_missing_an_example_says_how_to_get_it(run_script: RunScript, extra: str) -> None:
    done = run_script(AS_A_READER_DOES, "torch", str(EXAMPLES / TRAINERS[extra]))
    assert done.stdout == f"needs torch: pip install 'areal-core[{extra}]', or '.[{extra}]' in a checkout\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_where_only_trl_is_missing_its_example_says_so(run_script: RunScript) -> None:
    needs("torch", "datasets", "transformers")
    path = str(EXAMPLES / TRAINERS["trl"])
    done = run_script(AS_A_READER_DOES, "trl", path, timeout=50.0, flags=("-W", "error"))
    assert done.stdout == "needs trl: pip install 'areal-core[trl]', or '.[trl]' in a checkout\n"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(300)  # 10 s each where nothing else runs
@pytest.mark.parametrize("extra", TRAINERS)
def test_a_policy_learns_from_rollouts_that_go_on_meanwhile_and_no_prompt_is_lost(
    run_example: RunExample, extra: str
) -> None:
    needs("torch", extra)
    output = run_example(TRAINERS[extra])

    rows = re.findall(r"^(\d+)-(\d+) +(\d\.\d\d) +(\d)$", output, re.MULTILINE)
    assert [(int(first), int(last)) for first, last, *_ in rows] == [(n, n + 3) for n in range(1, 20, 4)]
    assert float(rows[-1][2]) > 2 * float(rows[0][2])
    oldest = [int(row[3]) for row in rows]
    assert 1 <= max(oldest) <= 2  # ahead of the trainer, and within the bound
    books = re.search(
        r"^(\d+) prompts: (\d+) trained on, (\d+) too old, (\d+) under way, 0 lost$", output, re.MULTILINE
    )
    assert books
    submitted, trained, dropped, under_way = map(int, books.groups())
    assert trained == 20 * 16
    assert submitted == trained + dropped + under_way


def test_the_server_reads_the_weights_that_torch_has_written(run_script: RunScript) -> None:
    needs("torch")
    done = run_script(BOTH_POLICIES, str(EXAMPLES), timeout=50.0, flags=("-W", "error"))
    assert (done.stdout, done.stderr) == ("7 True\n", "")


def test_the_loss_is_weighed_by_the_ratio_to_the_sampler_clipped_and_masked(run_script: RunScript) -> None:
    needs("torch")
    done = run_script(GAINS, str(EXAMPLES), timeout=50.0, flags=("-W", "error"))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "-1.0 True",
        "-1.2 False",  # likelier by more than is rewarded
        "-0.5 True",
        "0.8 False",  # less likely by more than is rewarded
        "0.0 False",  # masked
    ]


@pytest.mark.timeout(300)
def test_trl_gives_the_tokens_the_probabilities_with_which_its_policy_sampled_them(
    run_script: RunScript,
) -> None:
    needs("torch", "trl")
    done = run_script(TRL_BESIDE_THE_SAMPLER, str(EXAMPLES), timeout=280.0, flags=("-W", "error"))
    assert done.returncode == 0, done.stderr
    apart = [float(found) for found in re.findall(r"^apart (.*)$", done.stdout, re.MULTILINE)]
    assert len(apart) == 5
    assert apart[0] < 1e-4  # of the weights that it began with
    assert max(apart[1:]) > 1e-2  # of weights that were there one or two steps before
