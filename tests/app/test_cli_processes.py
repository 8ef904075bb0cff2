"""`flambeau run` under torchrun: one experiment, its training spread over two processes."""

import json
import subprocess
import sys

COMMAND = ["-m", "flambeau", "run", "prototype_reasoning", "--preset", "smoke", "--json", "--threads", "1"]


def start(command, folder):
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_two_processes_share_a_training_and_report_once(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    alone = start([*COMMAND, "--out", "alone"], tmp_path)
    together = start([*torchrun, *COMMAND, "--out", "together", "training.parallel=dp2"], tmp_path)
    assert [claim["name"] for claim in together["claims"]] == [claim["name"] for claim in alone["claims"]]
    assert (tmp_path / "together" / "report.html").exists() and not (tmp_path / "together/ranks/1/report.html").exists()
    assert not any("ranks" in path for path in together["artifacts"])

    def losses(folder):
        (first, *_) = sorted((tmp_path / folder / "train").rglob("metrics.jsonl"))
        return [json.loads(line)["loss"] for line in first.read_text().splitlines()]

    assert len(losses("together")) == len(losses("alone"))
    assert abs(losses("together")[0] - losses("alone")[0]) < 1e-4 * losses("alone")[0]
