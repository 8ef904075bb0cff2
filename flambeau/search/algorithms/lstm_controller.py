"""REINFORCE with an LSTM that sees the decisions made so far (Zoph and Le 2017; Pham et al. 2018, "ENAS")."""

from __future__ import annotations

import base64
import random
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.algorithms.reinforce import BINS, Baseline, grow, initial_logits, option_of, options_of
from flambeau.symbolic import DNA, Spec
from flambeau.symbolic.spec import Choices, Decision, Float


class _Policy(nn.Module):
    """Logits of a decision from the chain of decisions before it."""

    def __init__(self, options: int, hidden: int, buckets: int) -> None:
        super().__init__()
        self.decisions = nn.Embedding(buckets, hidden)
        self.choices = nn.Embedding(options + 1, hidden)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.head = nn.Linear(hidden, options)
        self.biases = nn.Embedding(buckets, options)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(self, decision: Tensor, previous: Tensor, state: tuple[Tensor, Tensor]):
        state = self.cell(self.decisions(decision) + self.choices(previous), state)
        return self.head(state[0]) + self.biases(decision), state


class LSTMController(Algorithm):
    """Draws decisions one after the other from an LSTM, trained by REINFORCE with a moving baseline.

    Args:
        rate: learning rate (plain SGD, gradients clipped to norm 1).
        entropy: weight of an entropy bonus.
        options: most candidates that a decision may have.
        hidden: width of the LSTM.
        buckets: decisions are told apart by a hash into so many.
        prior: a DesignPrior; its log weights are added to the logits.

    Raises:
        ValueError: (in `propose`) a decision with more than `options` candidates.
    """

    def __init__(
        self,
        rate: float = 0.3,
        entropy: float = 0.0,
        options: int = 32,
        hidden: int = 32,
        buckets: int = 128,
        prior: Any = None,
    ) -> None:
        if options < BINS:
            raise ValueError(f"options: expected at least {BINS}, the bins of a float, got {options}")
        self.rate, self.entropy, self.prior = rate, entropy, prior
        self.options, self.hidden, self.buckets = options, hidden, buckets

    def setup(self, spec: Spec, seed: int) -> None:
        self.spec, self.seed, self.proposals = spec, seed, 0
        self.baseline = Baseline()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = _Policy(self.options, self.hidden, self.buckets)

    @torch.no_grad()
    def propose(self) -> DNA:
        rng = random.Random(f"{self.seed}/{self.proposals}")
        self.proposals += 1
        reader = _Reader(self)

        def probabilities(decision: Decision) -> dict[int, float]:
            options = options_of(decision)
            weights = reader.log_probabilities(decision).exp().tolist()
            drawn = rng.choices(list(options), weights)[0]
            reader.previous = drawn
            return {drawn: 1.0}

        return grow(self.spec, rng, probabilities)

    def feedback(self, dna: DNA, reward: Reward) -> None:
        if isinstance(reward, tuple):
            raise TypeError(f"reward: expected one number, got {reward!r}")
        advantage = self.baseline.advantage(reward)
        reader, gain = _Reader(self), torch.zeros(())
        for decision, value in self.spec.decisions(dna):
            if not isinstance(decision.point, (Choices, Float)):
                continue
            logs = reader.log_probabilities(decision)
            reader.previous = option_of(decision.point, value)
            gain = gain + advantage * logs[list(options_of(decision)).index(reader.previous)]
            gain = gain - self.entropy * (logs.exp() * logs).sum()
        if not gain.requires_grad:
            return
        parameters = list(self.policy.parameters())
        gradients = torch.autograd.grad(gain, parameters, allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                if gradient is not None:
                    parameter += self.rate / max(1.0, float(norm)) * gradient

    def state_dict(self) -> dict[str, Any]:
        flat = torch.cat([parameter.detach().flatten() for parameter in self.policy.parameters()]).numpy()
        moments = [self.baseline.mean, self.baseline.square, self.baseline.count]
        weights = base64.b64encode(flat.astype("<f4").tobytes()).decode()
        return {"proposals": self.proposals, "baseline": moments, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.proposals = state["proposals"]
        self.baseline.mean, self.baseline.square, self.baseline.count = state["baseline"]
        flat = torch.from_numpy(np.frombuffer(base64.b64decode(state["weights"]), "<f4").copy())
        with torch.no_grad():
            for parameter, values in zip(
                self.policy.parameters(), flat.split([parameter.numel() for parameter in self.policy.parameters()])
            ):
                parameter.copy_(values.view_as(parameter))


class _Reader:
    """The LSTM's state along one program."""

    def __init__(self, controller: LSTMController) -> None:
        self.controller, self.previous = controller, -1
        self.state = (torch.zeros(1, controller.hidden), torch.zeros(1, controller.hidden))

    def log_probabilities(self, decision: Decision) -> Tensor:
        """Log probabilities of the options of the decision that is due `[options]`."""
        controller, options = self.controller, list(options_of(decision))
        logits = torch.tensor(initial_logits(decision.point, controller.prior))
        if len(logits) > controller.options:
            raise ValueError(f"options: {decision.id} has {len(logits)} candidates, more than {controller.options}")
        bucket = torch.tensor([zlib.crc32(decision.id.encode()) % controller.buckets])
        learned, self.state = controller.policy(bucket, torch.tensor([self.previous + 1]), self.state)
        return (logits + learned[0, : len(logits)])[options].log_softmax(0)
