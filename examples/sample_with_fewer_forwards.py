"""Sample a transformers causal model in fewer forwards: python examples/sample_with_fewer_forwards.py FOLDER 64"""

import sys

import torch

from flambeau.generation import SpeculativeJacobi, generate
from flambeau.generation.huggingface import load

folder, tokens = sys.argv[1], int(sys.argv[2])
model = load(folder)
prompt = torch.tensor([[model.model.config.bos_token_id]] * 4)
plain = generate(model, prompt, tokens, generator=torch.Generator().manual_seed(0))
fast = SpeculativeJacobi(window=16).generate(model, prompt, tokens, generator=torch.Generator().manual_seed(0))
forwards = [out.stats.nfe.float().mean().item() for out in (plain, fast)]
print(f"{tokens} tokens: {forwards[0]:.0f} forwards one by one, {forwards[1]:.0f} with speculation")
