"""Megatron-LM: every layer of a transformer split over processes, with two sums each way."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch

from flambeau.data import Batches, ByteTokenizer, derive_generator, pydoc_text, text_file, token_windows
from flambeau.data.text.masked_language import MaskedPairs
from flambeau.data.text.pretrained_tokenizer import PretrainedTokenizer
from flambeau.experiment import Claim, experiment
from flambeau.experiment.parallel import split_report as report
from flambeau.experiment.parallel import split_training as split
from flambeau.models.language import BERT, GPT
from flambeau.symbolic import symbolize
from flambeau.training import Trainer, WarmupCosine, WarmupLinear

# fmt: off
CLAIMS = [
    Claim("loss_gap", "largest difference of the loss in any step, split over two processes against one",
          unit="nats", at_most=5e-4),
    Claim("memory", "parameters and optimiser one of two processes holds, against one process alone",
          unit="x", at_most=0.56),
    Claim("all_reduces", "sums over the processes a layer takes, forward and backward",
          paper="two forward and two backward", at_least=4, at_most=4),
    Claim("loss_traffic", "numbers a token that the loss exchanges; gathering the logits would take the vocabulary",
          paper="b x s in place of b x s x v", at_most=3),
    Claim("size", "held-out loss of a GPT of a tenth of the parameters, minus that of the larger, after equal steps",
          paper="larger models converge faster and lower", unit="nats", at_least=0.1),
    Claim("post_norm", "BERT, norms behind the sums: change of the last layer's gradient, 24 or 48 layers against 6",
          unit="x", at_most=0.25),
    Claim("pre_norm", "BERT with norms before each part: last layer's gradient at 6 layers over that at 24",
          unit="x", at_least=1.7, at_most=3.2),
    Claim("weak_scaling", "efficiency computed for 2, 4 and 8 V100s, farthest from the one the paper measured",
          paper="95, 82 and 77 %", unit="points", at_most=8),
    Claim("gpu_rate", "a 4-layer cut of the 1.2B GPT in bf16: share of an H200's measured 790 TFLOP/s",
          paper="30 % of a V100's peak", unit="x", at_least=0.35, needs="gpu"),
    Claim("gpu_loss_memory", "memory of the loss over 16k tokens and 51,200 words, against F.cross_entropy in fp32",
          unit="x", at_most=0.6, needs="gpu"),
    Claim("wikitext", "perplexity a word on a text with WikiText's tokens, overlapping windows",
          paper="10.81 (8.3B, WikiText-103)"),
    Claim("lambada", "last words of passages that are predicted whole", paper="66.5 % (8.3B)", unit="%"),
    Claim("race", "questions answered after fine-tuning a BERT", paper="89.5 % (3.9B)", unit="%"),
]
_ADAMW = symbolize(torch.optim.AdamW)
GPT2_RECIPE = symbolize(Trainer)(
    steps=300_000, optimizer=_ADAMW.partial(lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.01),
    schedule=symbolize(WarmupCosine)(warmup=3000, floor=1 / 15), clip=1.0, precision="bf16",
)
BERT_RECIPE = symbolize(Trainer)(
    steps=2_000_000, optimizer=_ADAMW.partial(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01),
    schedule=symbolize(WarmupLinear)(warmup=10_000), clip=1.0, precision="bf16",
)
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "training.steps": 3, "batch_size": 2, "length": 32, "model.width": 64, "model.depth": 1, "inits": 1,
        "small.width": 16, "small.depth": 1, "large.width": 32, "large.depth": 1, "size_training.steps": 3,
        "depths": (6, 24), "bert_depths": (),
    },
    "paper": {
        "plan": "tp8 x dp64", "tokenizer": "hf:gpt2", "length": 1024, "batch_size": 512, "training": GPT2_RECIPE,
        "model.width": 3072, "model.depth": 72, "model.heads": 32, "model.dropout": 0.1, "alone": False,
    },
    "gpt2-2.5b": {
        "plan": "tp2 x dp64", "tokenizer": "hf:gpt2", "length": 1024, "batch_size": 512, "training": GPT2_RECIPE,
        "model.width": 1920, "model.depth": 54, "model.heads": 20, "model.dropout": 0.1, "alone": False,
    },
    "gpt2-355m": {
        "plan": "dp64", "tokenizer": "hf:gpt2", "length": 1024, "batch_size": 512, "training": GPT2_RECIPE,
        "model.width": 1024, "model.depth": 24, "model.heads": 16, "model.dropout": 0.1, "alone": False,
    },
    "gpt-3m": {"model.width": 192, "model.depth": 6},
    "gpt-1m": {"model.width": 144, "model.depth": 4},
    "gpt-0.1m": {"model.width": 48, "model.depth": 3},
    "bert-3.9b": {
        "architecture": "bert", "plan": "tp8 x dp64", "length": 512, "batch_size": 1024, "training": BERT_RECIPE,
        "bert.width": 2560, "bert.depth": 48, "bert.heads": 40, "bert.dropout": 0.1, "alone": False,
    },
    "bert-1.3b": {
        "architecture": "bert", "plan": "tp2 x dp64", "length": 512, "batch_size": 1024, "training": BERT_RECIPE,
        "bert.width": 2048, "bert.depth": 24, "bert.heads": 32, "bert.dropout": 0.1, "alone": False,
    },
    "bert-336m": {
        "architecture": "bert", "plan": "dp64", "length": 512, "batch_size": 1024, "training": BERT_RECIPE,
        "bert.width": 1024, "bert.depth": 24, "bert.heads": 16, "bert.dropout": 0.1, "alone": False,
    },
    "bert-tiny": {"architecture": "bert", "bert.width": 128, "bert.depth": 2},
}
# fmt: on


@experiment("megatron_lm", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: str | None = None,
    tokenizer: str | None = None,
    architecture: Literal["gpt", "bert"] = "gpt",
    model: Callable[..., GPT] = symbolize(GPT).partial(width=128, depth=2, heads=4, dropout=0.0),
    bert: Callable[..., BERT] = symbolize(BERT).partial(width=64, depth=2, heads=4, dropout=0.0),
    plan: str = "tp2",
    alone: bool = True,
    length: int = 128,
    batch_size: int = 8,
    training: Trainer = symbolize(Trainer)(
        steps=60, optimizer=_ADAMW.partial(lr=1e-3), schedule=symbolize(WarmupCosine)(), clip=1.0
    ),
    small: Callable[..., GPT] = symbolize(GPT).partial(width=48, depth=3, heads=4, dropout=0.0),
    large: Callable[..., GPT] = symbolize(GPT).partial(width=144, depth=4, heads=4, dropout=0.0),
    size_training: Trainer = symbolize(Trainer)(
        steps=250, optimizer=_ADAMW.partial(lr=1e-3), schedule=symbolize(WarmupCosine)(), clip=1.0
    ),
    depths: tuple[int, ...] = (6, 24, 48),
    inits: int = 8,
    bert_depths: tuple[int, ...] = (6, 16),
    bert_training: Trainer = symbolize(Trainer)(
        steps=60, optimizer=_ADAMW.partial(lr=1e-3), schedule=symbolize(WarmupCosine)(), clip=1.0
    ),
    pretrained: str | None = None,
    wikitext: str | None = None,
    lambada: str | None = None,
    race: str | None = None,
) -> None:
    """Train one model whole and split over processes, and compare losses, memory and what the processes exchange.

    data: text file to learn from (default: Python's language reference).
    tokenizer: "hf:FOLDER" or "hf:NAME" of transformers (default: bytes).
    architecture: "gpt" or "bert", which of the two is split.
    model: the GPT.
    bert: the BERT.
    plan: processes, such as "tp2", "tp4" or "dp2 x tp2"; started here, or by torchrun.
    alone: also train in one process, to compare with; a model that one process cannot hold has to do without.
    length: tokens of a sequence.
    batch_size: sequences a step.
    training: of the model, whole and split.
    small: the smaller GPT of the comparison of sizes.
    large: the larger one; also what the evaluations are made with.
    size_training: of these two.
    depths: of the BERTs whose gradients are compared before training; the first is the reference.
    inits: initialisations averaged for them.
    bert_depths: of BERTs trained with norms before and behind, for the table; empty for none.
    bert_training: of these.
    pretrained: "hf:FOLDER" or "hf:NAME", a GPT-2, BERT or Llama of transformers whose split gradients are checked.
    wikitext: WikiText's test file, for the perplexity.
    lambada: LAMBADA's JSON lines, for the cloze accuracy.
    race: folder of RACE with train and test, on which `bert` is fine-tuned with `bert_training`.
    """
    text = pydoc_text() if data is None else text_file(data)
    tokens_of = ByteTokenizer() if tokenizer is None else PretrainedTokenizer(tokenizer.removeprefix("hf:"))
    tokens = tokens_of.encode(text)
    cut = int(0.9 * len(tokens))
    windows, held_out = token_windows(tokens[:cut], length), token_windows(tokens[cut:], length)
    vocab = tokens_of.vocab_size

    if architecture == "gpt":
        build: Any = partial(model, vocab, length)
        fed: Any = Batches(windows, batch_size)
        batch: Any = windows[:batch_size].clone()
        loss: Any = split.next_token_loss
    else:
        build = partial(bert, vocab + 3, length)
        fed = MaskedPairs(tokens[:cut], tokens_of.word_begins(tokens[:cut]), length, batch_size, vocab)
        batch = fed(0, derive_generator(run.seed, "traffic"))
        loss = split.masked_loss
    whole = split.split_model(plan, build, run.seed)
    expected: list[float] | None = None
    if alone:
        folder = run.folder / "train" / "one process"
        fit = training.fit(whole.to(run.device), loss, fed, folder=folder, progress=run.progress, seed=run.seed)
        expected = [entry["loss"] for entry in fit.history]
    with run.progress(f"split: {plan}", 1) as task:
        ranks = split.train_split(
            plan, build, loss, training, fed, batch, run.folder / "train" / plan, run.seed,
            numerics=alone, device=run.device.type,
        )  # fmt: skip
        task.advance()
    report.split_training(run, plan, whole, batch, expected, ranks)

    windows_of = dict(windows=windows, held_out=held_out, batch_size=batch_size, training=size_training)
    _, worse = report.trained_gpt(run, "small", partial(small, vocab, length), **windows_of)
    gpt, better = report.trained_gpt(run, "large", partial(large, vocab, length), **windows_of)
    run.measure("size", ours=better, baseline=worse, value=worse - better)
    report.norm_placement(run, depths, inits)
    if bert_depths:
        pairs = MaskedPairs(tokens[:cut], tokens_of.word_begins(tokens[:cut]), length, batch_size, vocab)
        report.trained_berts(run, partial(bert, vocab + 3, length), pairs, bert_depths, bert_training)
    report.weak_scaling(run)
    if pretrained is not None:
        report.pretrained_numerics(run, pretrained, plan)
    report.gpt_quality(run, gpt, tokens_of, wikitext, lambada)
    report.bert_quality(run, partial(bert, vocab + 3, length), tokens_of, length, race, bert_training)
    report.gpu(run)
