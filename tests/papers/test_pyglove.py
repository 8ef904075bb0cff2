"""The experiment runs whole, and the super-network over cells is the network of each cell."""

import random

import pytest
import torch

from flambeau.data.nas.nasbench import OPERATIONS, Cell, cell_space
from flambeau.experiment import run_experiment
from flambeau.models.vision.cell_network import CellNetwork, OpenCell, cell_operation
from flambeau.papers import load
from flambeau.search.weight_sharing.supernet import Supernet, extract
from flambeau.symbolic import oneof, symbolize, template

pytest.importorskip("scipy", reason="scipy is not installed")


def test_smoke(tmp_path):
    result = run_experiment(load("pyglove"), preset="smoke", out=tmp_path, seed=0)
    for claim in result["claims"]:
        assert claim["value"] is not None or claim["why"], claim
    assert {row["search"] for row in result["tables"]["searches"]} >= {"random", "evolution", "MCTS", "REINFORCE"}
    assert next(claim for claim in result["claims"] if claim["name"] == "lines")["value"] <= 5


def test_replay_rewards_every_labelling_of_a_cell_alike():
    from flambeau.data.nas.nasbench import DigitsNasBench
    from flambeau.search.cells import CellReplay

    table = DigitsNasBench()
    replay = CellReplay(table)
    rng = random.Random(0)
    for _ in range(50):
        dna = replay.spec.random(rng)
        cell = replay.template.decode(dna).build()
        expected = table.query(cell).validation if cell in table else 0.0
        assert replay(dna) == pytest.approx(expected)
    assert replay.rank.min() == pytest.approx(100 / len(table)) and replay.rank.max() <= 100
    assert replay.row(replay.connected) is not None


def test_cell_space_decodes_to_cells():
    space, rng = template(cell_space(4)), random.Random(0)
    assert space.space_size == 2**6 * 3**2
    for _ in range(50):
        dna = space.spec.random(rng)
        assert isinstance(space.decode(dna).build(), Cell)
        assert space.encode(space.decode(dna)) == dna


def test_open_cell_equals_the_network_of_its_cell():
    torch.manual_seed(0)
    cell = Cell.from_edges([1, 1, 0, 1, 1, 1], ["conv3x3", "maxpool3x3"])
    program = symbolize(OpenCell)(
        edges=[oneof([0, 1]) for _ in range(6)],
        operations=[oneof([symbolize(cell_operation)(name) for name in OPERATIONS]) for _ in range(2)],
    )
    supernet, images = Supernet(program).eval(), torch.randn(3, 1, 8, 8)
    edges = [cell.matrix[i][j] for i in range(4) for j in range(i + 1, 4)]
    dna = supernet.spec.from_numbers([*edges, *map(OPERATIONS.index, cell.operations)])
    supernet.choose(dna)
    child, network = extract(supernet, dna), CellNetwork(cell).eval()
    torch.testing.assert_close(child(images), supernet(images), atol=1e-6, rtol=0)
    network.stem.load_state_dict(child.stem.state_dict())
    network.operations[0].load_state_dict(child.operations[0].state_dict())
    branches = [child.branches[i] for i in range(3) if cell.matrix[i][3]]
    for ours, theirs in zip(network.branches, branches):
        ours.load_state_dict(theirs.state_dict())
    network.norm.load_state_dict(child.norm.state_dict())
    network.classifier.weight.data.copy_(child.classifier.weight[:, :, None, None])
    network.classifier.bias.data.copy_(child.classifier.bias)
    torch.testing.assert_close(network(images), child(images), atol=1e-5, rtol=0)


def test_replicas_train_as_they_would_alone():
    cell = Cell.from_edges([1, 1, 0, 1, 1, 1], ["conv3x3", "maxpool3x3"])
    alone = [CellNetwork(cell).double() for _ in range(3)]
    together = CellNetwork.stack(alone)
    together.double().load_state_dict(CellNetwork.stack(alone).state_dict())
    images, labels = torch.rand(3, 8, 1, 8, 8, dtype=torch.float64), torch.randint(10, (3, 8))
    optimizers = [torch.optim.Adam(network.parameters(), 5e-3) for network in [*alone, together]]
    for _ in range(5):
        for i, network in enumerate(alone):
            optimizers[i].zero_grad()
            torch.nn.functional.cross_entropy(network(images[i]), labels[i]).backward()
            optimizers[i].step()
        optimizers[3].zero_grad()
        logits = together(images.squeeze(2).transpose(0, 1)).unflatten(1, (3, 10))
        sum(torch.nn.functional.cross_entropy(logits[:, i], labels[i]) for i in range(3)).backward()
        optimizers[3].step()
    expected = CellNetwork.stack(alone).double().state_dict()
    for name, value in together.state_dict().items():
        torch.testing.assert_close(value, expected[name].to(value.dtype), atol=1e-6, rtol=1e-5)
