"""An algorithm inside a Ray Tune script: `tune.Tuner(train, tune_config=TuneConfig(search_alg=TuneSearcher(...)))`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    from ray.tune.search import Searcher
except ImportError as error:
    raise ImportError("TuneSearcher needs Ray Tune: pip install 'flambeau[search]' 'ray[tune]'") from error

from flambeau.search.algorithm import Algorithm
from flambeau.search.coordinator import trial_seed
from flambeau.search.sample import as_template
from flambeau.symbolic import DNA


class TuneSearcher(Searcher):
    """Suggests `{"value": ..., "seed": ..., "dna": ...}` to Tune's trainable, and learns from `metric`.

    Several metrics (a list, with a list of modes) are the objectives of a multi-objective algorithm. A trial that fails
    or reports no finite metric counts as infeasible. Limit the parallel trials by Tune's ConcurrencyLimiter.
    """

    def __init__(
        self,
        space: Any,
        algorithm: Algorithm,
        metric: str | list[str],
        mode: Literal["max", "min"] | list[str] = "max",
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self.template, self.algorithm, self.seed = as_template(space), algorithm, seed
        self.signs = {name: 1.0 if m == "max" else -1.0 for name, m in zip(self._list(metric), self._list(mode))}
        if len(self.signs) > 1 and not algorithm.multi_objective:
            raise ValueError(f"metric: {type(algorithm).__name__} takes one, got {metric}")
        algorithm.setup(self.template.spec, seed)
        self.pending: dict[str, DNA] = {}
        self.count = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            dna = self.algorithm.propose()
        except StopIteration:
            return Searcher.FINISHED
        self.pending[trial_id] = dna
        self.count += 1
        return {"value": self.template.decode(dna), "seed": trial_seed(self.seed, self.count - 1), "dna": dna.to_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        dna = self.pending.pop(trial_id, None)
        rewards = [sign * (result or {}).get(name, math.nan) for name, sign in self.signs.items()]
        if dna is None or error or not all(map(math.isfinite, rewards)):
            return
        self.algorithm.feedback(dna, tuple(rewards) if self.algorithm.multi_objective else rewards[0])

    def save(self, checkpoint_path: str) -> None:
        pending = {trial: dna.to_json() for trial, dna in self.pending.items()}
        state = {"algorithm": self.algorithm.state_dict(), "pending": pending, "count": self.count}
        partial = Path(f"{checkpoint_path}.partial")
        partial.write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        os.replace(partial, checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self.algorithm.setup(self.template.spec, self.seed)
        self.algorithm.load_state_dict(state["algorithm"])
        self.pending = {trial: DNA.from_json(dna) for trial, dna in state["pending"].items()}
        self.count = state["count"]

    @staticmethod
    def _list(value: str | list[str]) -> list[str]:
        return [value] if isinstance(value, str) else list(value)
