"""Small networks that answer at every step of a token sequence without seeing the future."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.nn.recurrent import FlashRNN


class RecurrentTagger(nn.Module):
    """Embedding, a recurrent network, a linear answer a step.

    Args:
        tokens: size of the vocabulary.
        answers: number of classes.
        hidden: units of the recurrent network, and width of the embedding.
        cell: ``"lstm"``, ``"slstm"``, ``"gru"`` or ``"elman"``.
        num_heads: blocks of its recurrence.
    """

    def __init__(self, tokens: int, answers: int, hidden: int, cell: str = "lstm", num_heads: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, hidden)
        self.network = FlashRNN(hidden, hidden, num_heads, cell)
        self.answer = nn.Linear(hidden, answers)

    def forward(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time answers"]:
        """Logits of every step."""
        return self.answer(self.network(self.embedding(x))[0])


class TransformerTagger(nn.Module):
    """A causal transformer (Vaswani et al., 2017) with sinusoidal positions and a linear answer a step."""

    def __init__(self, tokens: int, answers: int, width: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.network = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.answer = nn.Linear(width, answers)

    def forward(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time answers"]:
        """Logits of every step."""
        time, width = x.shape[1], self.embedding.embedding_dim
        rate = torch.exp(torch.arange(0, width, 2, device=x.device) * (-torch.log(torch.tensor(10000.0)) / width))
        angle = torch.arange(time, device=x.device)[:, None] * rate
        positions = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        mask = nn.Transformer.generate_square_subsequent_mask(time, device=x.device)
        return self.answer(self.network(self.embedding(x) + positions, mask=mask, is_causal=True))
