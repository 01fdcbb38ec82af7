"""Fields of torch_geometric's layers: their weights are changed, and what is a node's stays a node's."""

import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.modules.corrections.weights import FieldWeights

pytestmark = pytest.mark.filterwarnings("default")  # theirs, of their dependencies
N_NODES = 6
_ONE_WAY = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
EDGES = torch.cat([_ONE_WAY, _ONE_WAY.flip(0)], dim=1)
TURN = torch.tensor([3, 4, 5, 0, 1, 2])
"""Half a turn of the ring, which maps the chord from 0 to 3 onto itself: the same graph again."""


class Convolutions(nn.Module):
    """GCNConv takes states of shape (n, nodes, k) as they are."""

    def __init__(self, nn_of_graphs):
        super().__init__()
        self.first, self.last = nn_of_graphs.GCNConv(2, 8), nn_of_graphs.GCNConv(8, 2)
        self.register_buffer("edges", EDGES)

    def forward(self, t, z):
        return 2 * self.last(self.first(z, self.edges).tanh(), self.edges)


class Attention(nn.Module):
    """GATConv takes one graph: a batch is one, without edges between its samples."""

    def __init__(self, nn_of_graphs):
        super().__init__()
        self.first, self.last = nn_of_graphs.GATConv(2, 4, heads=2), nn_of_graphs.GATConv(8, 2)
        self.register_buffer("edges", EDGES)

    def forward(self, t, z):
        n, m, _ = z.shape
        edges = (self.edges[:, None] + m * torch.arange(n)[:, None]).reshape(2, -1)
        return 2 * self.last(self.first(z.reshape(n * m, 2), edges).tanh(), edges).reshape(z.shape)


@pytest.mark.parametrize("make", [Convolutions, Attention])
def test_graph_layers(make, library):
    library("torch_geometric")
    from torch_geometric import nn as nn_of_graphs

    torch.manual_seed(0)
    X = torch.randn(60, N_NODES, 2)
    fast = HypersolverRegressor(make(nn_of_graphs), n_steps=2, max_epochs=10, random_state=0).fit(X)
    assert isinstance(fast.correction_, FieldWeights)
    assert fast.errors_[2]["mean"] < fast.errors_[2]["base_mean"]
    turned = torch.from_numpy(fast.predict(X[:, TURN]))
    torch.testing.assert_close(turned, torch.from_numpy(fast.predict(X))[:, TURN], rtol=0, atol=1e-5)
