"""One thread a test process: two run side by side, and results must not depend on the split of a reduction."""

import torch

torch.set_num_threads(1)
