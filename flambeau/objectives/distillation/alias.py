"""Drawing from a fixed discrete distribution in constant time."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class AliasSampler(nn.Module):
    """Indices with chances proportional to `weights`, at a cost that does not depend on how many there are.

    Walker's alias method (1977) with Vose's construction (1991): column k of a table keeps k with probability
    `probability[k]` and gives `alias[k]` otherwise. The table is in the state dict and moves with the module.

    weights: [classes], not negative, with a positive sum (they need not add up to 1).
    Raises ValueError for other weights.
    """

    probability: Tensor
    alias: Tensor

    def __init__(self, weights: Float[Tensor, " classes"]):
        super().__init__()
        weights = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        if weights.ndim != 1 or not len(weights) or not weights.isfinite().all() or (weights < 0).any():
            raise ValueError(f"weights: got shape {list(weights.shape)}, expected [classes] of finite numbers >= 0")
        if not weights.sum() > 0:
            raise ValueError("weights: got a sum of 0, expected at least one positive weight")
        count = len(weights)
        heights = (weights * (count / weights.sum())).tolist()  # of columns whose mean is 1
        alias = list(range(count))
        low = [k for k, height in enumerate(heights) if height < 1]
        high = [k for k, height in enumerate(heights) if height >= 1]
        while low and high:
            short, tall = low.pop(), high[-1]
            alias[short] = tall
            heights[tall] -= 1 - heights[short]
            if heights[tall] < 1:
                low.append(high.pop())
        for k in low + high:  # what rounding left over is full
            heights[k] = 1.0
        self.register_buffer("probability", torch.tensor(heights, dtype=torch.float32))
        self.register_buffer("alias", torch.tensor(alias))

    def draw(self, *shape: int, generator: torch.Generator | None = None) -> Int64[Tensor, "*shape"]:
        """Independent indices in `shape`, on the table's device.

        generator: on any device; without one, the default generator of the table's device.
        """
        device = self.alias.device if generator is None else generator.device
        column = torch.randint(len(self.alias), shape, generator=generator, device=device)
        chance = torch.rand(shape, generator=generator, device=device).to(self.alias.device)
        column = column.to(self.alias.device)
        return torch.where(chance < self.probability[column], column, self.alias[column])
