"""What the tests send to worker processes; also the script of a controller that gets killed."""

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from flambeau.search.algorithm import Algorithm
from flambeau.search.evaluate import search
from flambeau.search.functional.cache import FunctionalCache
from flambeau.search.sample import sample
from flambeau.symbolic import floatv, oneof


def space():
    return [oneof([0, 1, 2, 3]), floatv(0.0, 1.0), oneof([oneof([0.0, 0.5]), lambda: 0.25])]


class Climber(Algorithm):
    """A random walk whose every proposal depends on the order and values of all feedback so far."""

    def setup(self, spec, seed):
        self.spec, self.seed, self.count, self.mark = spec, seed, 0, "start"

    def propose(self):
        self.count += 1
        return self.spec.random(random.Random(f"{self.seed}/{self.count}/{self.mark}"))

    def feedback(self, dna, reward):
        self.mark = f"{hash_text(self.mark)}/{dna.to_json()}/{reward}"

    def state_dict(self):
        return {"count": self.count, "mark": self.mark}

    def load_state_dict(self, state):
        self.count, self.mark = state["count"], state["mark"]


def hash_text(text):
    return random.Random(text).random()


def score(value, feedback):
    return value[0] + value[1] + value[2] + random.Random(feedback.seed).random()


def slow_score(value, feedback):
    time.sleep(0.02 * random.Random(str(value)).random())
    return score(value, feedback)


def score_or_die(value, feedback, trials, folder):
    """SIGKILL this worker, once, in each of `trials`."""
    marker = Path(folder) / f"died-{feedback.id}"
    if feedback.id in trials and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return score(value, feedback)


def always_die(value, feedback):
    if feedback.id == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def fail(value, feedback):
    raise ArithmeticError("no such number")


def slow_and_logged(value, feedback, folder):
    (Path(folder) / f"pid-{os.getpid()}").touch()
    time.sleep(0.05)
    return score(value, feedback)


def loop_on(path, count):
    """One of several processes that run the same loop on one file."""
    for value, feedback in sample(space, Climber(), count, study=path):
        feedback(score(value, feedback))


def grid():
    return [oneof(list(range(6))) for _ in range(3)]


def modulo(value):
    """A key that is one of five for all points of the grid."""
    return 100 + sum(value) % 5


def one_key(value):
    return 100


def by_key(value, feedback=None):
    return float(modulo(value) ** 2 % 11)


def logged(value, feedback, folder):
    """Leave a file for every evaluation of a key."""
    (Path(folder) / f"{modulo(value)}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(0.01)
    return by_key(value)


def logged_or_die(value, feedback, folder):
    """SIGKILL the first worker that evaluates, while it has a key."""
    try:
        (Path(folder) / "died").touch(exist_ok=False)
    except FileExistsError:
        return logged(value, feedback, folder)
    time.sleep(0.2)  # until the other worker waits
    os.kill(os.getpid(), signal.SIGKILL)


def outcome(study):
    return [(trial.dna, trial.reward) for trial in study.trials()]


if __name__ == "__main__" and sys.argv[1] == "cache":
    shared = FunctionalCache(modulo, store=sys.argv[2])
    for a in range(6):
        for b in range(6):
            result = shared.evaluate([a, b, 0], lambda value: logged(value, None, sys.argv[3]))
            assert result.value == by_key([a, b, 0])
elif __name__ == "__main__":
    path, folder, backend, workers = sys.argv[1:]
    evaluate = partial(slow_and_logged, folder=folder)
    search(
        space, Climber(), evaluate, 24, study=path, backend=backend, workers=int(workers), deterministic=True, batch=4
    )
