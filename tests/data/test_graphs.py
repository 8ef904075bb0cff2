import pytest
import torch

from flambeau.data import Graph, karate_club


def test_karate_club_is_zacharys():
    graph = karate_club()
    matrix = graph.adjacency()
    assert graph.nodes == 34 and graph.edges.shape == (2, 156)
    assert torch.equal(matrix, matrix.T) and matrix.trace() == 0 and matrix.sum() == 156
    assert matrix.sum(1).sort(descending=True).values[:3].tolist() == [17, 16, 12]
    assert int(torch.linalg.matrix_power(matrix + torch.eye(34), 5).gt(0).all()), "its diameter is 5"
    assert (matrix @ matrix @ matrix).trace() / 6 == 45, "triangles"
    assert graph.labels[0] == 0 and graph.labels[33] == 1 and graph.labels.sum() == 17


def test_karate_club_equals_networkx():
    networkx = pytest.importorskip("networkx")
    theirs = torch.from_numpy(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None)).float()
    assert torch.equal(karate_club().adjacency(), theirs)


def test_bad_graphs_are_named():
    with pytest.raises(ValueError, match=r"edges must be int64 \[2, edges\], got torch.float32 \[2, 3\]"):
        Graph(torch.zeros(2, 3), 4)
    with pytest.raises(ValueError, match=r"edges must lie in \[0, 4\), got 0 to 4"):
        Graph(torch.tensor([[0], [4]]), 4)
    with pytest.raises(ValueError, match="labels must have one row for each of 4 nodes, got 3"):
        Graph(torch.tensor([[0], [1]]), 4, labels=torch.zeros(3).long())
