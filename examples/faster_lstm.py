"""Put the fused LSTM in the place of your torch.nn.LSTM, same weights and outputs, and time both."""

import torch

from flambeau.nn import FlashLSTM
from flambeau.ops.bench import interleaved

lstm = torch.nn.LSTM(input_size=32, hidden_size=64)
fast = FlashLSTM.from_torch(lstm)
x = torch.randn(256, 1, 32)
with torch.no_grad():
    print("largest difference", (lstm(x)[0] - fast(x)[0]).abs().max().item())
    for name, timing in interleaved({"torch.nn.LSTM": lambda: lstm(x), "FlashLSTM": lambda: fast(x)}).items():
        print(f"{name:<14} {1e3 * timing.cpu:.2f} ms")
