"""Training click predictors: log-loss, early stopping within an epoch, thinned negatives, vocabularies that grow."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.data import Batches
from flambeau.data.clicks.encoded import ClickRows
from flambeau.data.clicks.fields import FieldSchema
from flambeau.data.seeding import derive_generator
from flambeau.nn.fields.embedding import FieldEmbedding
from flambeau.training.progress import Progress
from flambeau.training.state import device_of
from flambeau.training.trainer import Fit, Trainer


def log_loss(model: nn.Module, batch: ClickRows) -> Tensor:
    """Mean log-loss of a batch (AutoInt, equation 11)."""
    ids, values, labels = batch
    return F.binary_cross_entropy_with_logits(model(ids, values), labels)


@torch.no_grad()
def predict_logits(
    model: nn.Module, ids: Int[Tensor, "rows slots"], values: Float[Tensor, "rows slots"], batch_size: int = 8192
) -> Float[Tensor, " rows"]:
    """Logits of all rows, in evaluation mode, on the CPU."""
    device, training = device_of(model), model.training
    model.eval()
    parts = [
        model(ids[start : start + batch_size].to(device), values[start : start + batch_size].to(device)).float().cpu()
        for start in range(0, len(ids), batch_size)
    ]
    model.train(training)
    return torch.cat(parts) if parts else torch.empty(0)


def fit_clicks(
    model: nn.Module,
    train: ClickRows,
    validation: ClickRows,
    trainer: Trainer,
    *,
    batch_size: int = 1024,
    keep_negatives: float = 1.0,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Fit:
    """Train `model` in place; each evaluation gives ``auc`` and ``log_loss`` of the validation rows.

    With ``Trainer(select="max", evaluate_every=..., patience=...)`` the weights of the best AUC are kept, with
    ``"min"`` those of the best log-loss, and training ends when it stops improving, in the middle of an epoch if need
    be: click predictors overfit within one or two.

    Args:
        train: rows to learn from.
        validation: rows to stop by, of both labels.
        batch_size: rows a step, at most all.
        keep_negatives: share of the rows without a click that are kept. The model then overrates clicks; its logits
            need :func:`negative_offset` added. The validation rows stay as they are: AUC does not mind.

    Raises:
        ValueError: labels other than 0 and 1 (NaN among them), rows of one label only, or a share outside (0, 1].
    """
    for name, rows in (("train", train), ("validation", validation)):
        if not ((rows.labels == 0) | (rows.labels == 1)).all():
            bad = rows.labels[(rows.labels != 0) & (rows.labels != 1)][0].item()
            raise ValueError(f"{name}: labels must be 0 or 1, got {bad}")
        if not 0 < rows.labels.mean() < 1:
            raise ValueError(f"{name}: expected rows with and without a click, got {len(rows.labels)} rows of one kind")
    if keep_negatives != 1:
        train = thin_negatives(train, keep_negatives, derive_generator(seed, "negatives"))
    data = Batches(tuple(train), min(batch_size, len(train.labels)))

    def evaluate(trained: nn.Module) -> dict[str, float]:
        logits = predict_logits(trained, validation.ids, validation.values)
        loss = F.binary_cross_entropy_with_logits(logits + negative_offset(keep_negatives), validation.labels)
        values = {"auc": float(roc_auc_score(validation.labels.numpy(), logits.numpy())), "log_loss": loss.item()}
        return values if trainer.select != "min" else dict(reversed(values.items()))

    return trainer.fit(model, log_loss, data, evaluate=evaluate, folder=folder, progress=progress, seed=seed)


def thin_negatives(rows: ClickRows, keep: float, generator: torch.Generator) -> ClickRows:
    """All rows with a click, and each one without with probability `keep`.

    Raises:
        ValueError: a share outside (0, 1], or nothing left of the rows without a click.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep_negatives must lie in (0, 1], got {keep}")
    kept = (rows.labels == 1) | (torch.rand(len(rows.labels), generator=generator) < keep)
    if rows.labels[kept].all():
        raise ValueError(f"keep_negatives={keep:g} leaves no row without a click of {len(rows.labels)} rows")
    place = kept.nonzero().squeeze(1)
    return ClickRows(*(tensor.index_select(0, place) for tensor in rows))


def negative_offset(keep: float) -> float:
    """What to add to the logits of a model that saw only this share of the negatives: ``log(keep)``.

    The odds of a click among the thinned rows are 1 / `keep` times the true ones (He et al. 2014, section 6.3).
    """
    return math.log(keep)


def grow_model(model: nn.Module, schema: FieldSchema, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give every embedding of `model` rows for the ids that ``FieldSchema.grow`` appended, in place.

    A new category starts with the vector of its field's rare ones, as which it was treated until now, so that
    predictions do not change until training goes on. The optimiser's moments of new rows are zero.

    Args:
        model: with embeddings made by ``FieldSchema.embedding``.
        schema: the grown one.
        optimizer: over the model's parameters; its references and states follow.

    Raises:
        ValueError: a schema with fewer ids than the model, or of other fields.
    """
    row_field = schema.row_field
    rare = torch.tensor([schema.first[one.name] + (one.kind != "numeric") for one in schema.fields])
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, FieldEmbedding):
            if module.slots != schema.slots or module.rows > schema.rows:
                raise ValueError(
                    f"schema: expected at least {module.rows} ids over slots {module.slots}, got {schema.rows} over "
                    f"{schema.slots}"
                )
            replaced |= module.grow(row_field, rare[row_field[module.rows :]])
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        for place, old in enumerate(group["params"]):
            if old not in replaced:
                continue
            new = group["params"][place] = replaced[old]
            state = optimizer.state.pop(old, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    state[name] = torch.cat([value, value.new_zeros(len(new) - len(old), *old.shape[1:])])
            if state:
                optimizer.state[new] = state
