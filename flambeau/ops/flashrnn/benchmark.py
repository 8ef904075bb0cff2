"""What FlashRNN is timed against: the step loop people write, and torch.nn.LSTM with the same input projection."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.ops.bench import Case
from flambeau.ops.flashrnn import flashrnn

# batch, time, heads, dim: sequences one at a time with a small and a large head, and a batch with a very large one
SHAPES = [(1, 256, 1, 64), (1, 256, 1, 256), (16, 64, 1, 512)]


def step_loop(
    Wx: Float[Tensor, "batch time 4 heads dim"], R: Float[Tensor, "4 heads dim dim"], b: Float[Tensor, "4 heads dim"]
) -> Float[Tensor, "batch time heads dim"]:
    """An LSTM as a decent loop in PyTorch: one product a step, bias added beforehand.

    It takes steps from ``unbind``: indexing ``Wx[:, t]`` would give every step's gradient the size of all of Wx.
    """
    batch, _, gates, heads, dim = Wx.shape
    weights = R.permute(1, 3, 0, 2).reshape(heads, dim, gates * dim)
    h, c, outputs = Wx.new_zeros(heads, batch, dim), Wx.new_zeros(batch, heads, dim), []
    for wx in (Wx + b).unbind(1):
        i, f, z, o = (wx + (h @ weights).view(heads, batch, gates, dim).permute(1, 2, 0, 3)).unbind(1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        outputs.append(torch.sigmoid(o) * torch.tanh(c))
        h = outputs[-1].transpose(0, 1)
    return torch.stack(outputs, 1)


def cases(
    shapes: list[tuple[int, int, int, int]] = SHAPES, backward: bool = True, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Case]:  # fmt: skip
    """Recurrences alone against the loop, and whole layers (one head) against torch.nn.LSTM, per shape.

    Args:
        shapes: (batch, time, heads, dim).
        backward: forward and backward, else forward without gradients.
    """
    found = []
    for batch, time, heads, dim in shapes:
        generator = torch.Generator().manual_seed(0)
        sizes = [(batch, time, 4, heads, dim), (4, heads, dim, dim), (4, heads, dim)]
        Wx, R, b = (torch.randn(s, generator=generator).to(device, dtype) for s in sizes)
        inputs = [Wx, R / dim**0.5, b]
        work = 2 * 4 * batch * time * heads * dim * dim * (3 if backward else 1)
        moved = Wx.element_size() * batch * time * heads * dim * (4 + 2) * (2 if backward else 1)
        name = f"B {batch} T {time} heads {heads} x {dim}"
        ways = {"flashrnn": lambda *x: flashrnn(*x)[0][0], "step loop": step_loop}
        functions = {label: _call(way, inputs, backward) for label, way in ways.items()}
        found.append(Case(name, functions, work, moved))
        if heads == 1:
            layer = nn.LSTM(dim, dim, batch_first=True, device=device, dtype=dtype)
            x = torch.randn(batch, time, dim, generator=generator).to(device, dtype)
            weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0]
            inputs = [x, *(w.detach() for w in weights)]

            def whole(x: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, dim: int = dim) -> Tensor:
                Wx = (x @ w_ih.T).unflatten(-1, (4, 1, dim))
                return flashrnn(Wx, w_hh.view(4, 1, dim, dim), bias.view(4, 1, dim))[0][0]

            functions = {
                "flashrnn": _call(whole, inputs, backward),
                "torch.nn.LSTM": _call(lambda x, layer=layer: layer(x)[0], [x], backward),
            }
            found.append(Case(f"{name}, with input projection", functions, 2 * work, moved))
    return found


def _call(way, inputs: list[Tensor], backward: bool):
    inputs = [x.detach().clone().requires_grad_(backward) for x in inputs]

    def run() -> None:
        if backward:
            way(*inputs).sum().backward()
        else:
            with torch.no_grad():
                way(*inputs)

    return run
