"""A click predictor as an ONNX file beside its schema, for runtimes without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.files import write_bytes


class _Clicks(nn.Module):
    def __init__(self, model: nn.Module, offset: float):
        super().__init__()
        self.model, self.offset = model, offset

    def forward(self, ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(ids, values) + self.offset
        return logits, logits.sigmoid()


def export_autoint_onnx(
    model: nn.Module, schema: FieldSchema, path: str | os.PathLike, *, logit_offset: float = 0.0
) -> None:
    """Write inputs ``ids`` and ``values`` [batch, slots] -> outputs ``logits`` and ``probability`` [batch].

    The batch is free. The schema goes beside it, with the suffix ``.schema.json``: ``FieldSchema.load(...).encode``
    makes the inputs. Any model of :mod:`flambeau.models.tabular` that takes encoded fields will do.

    Args:
        logit_offset: added to the logits, see :func:`~flambeau.training.click_through.negative_offset`.

    Raises:
        ImportError: without the packages of ``pip install flambeau[onnx]``.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("exporting needs ONNX: pip install 'flambeau[onnx]'") from error
    path = Path(path)
    slots = sum(schema.slots)
    device = next(model.parameters()).device
    example = (torch.zeros(2, slots, dtype=torch.int64, device=device), torch.ones(2, slots, device=device))
    training = model.training
    batch = torch.export.Dim("batch")
    try:
        program = torch.onnx.export(
            _Clicks(model, logit_offset).eval(),
            example,
            dynamo=True,
            input_names=["ids", "values"],
            output_names=["logits", "probability"],
            dynamic_shapes=({0: batch}, {0: batch}),
            verbose=False,
        )
    finally:
        model.train(training)
    schema.save(path.with_suffix(".schema.json"))
    write_bytes(path, program.model_proto.SerializeToString())
