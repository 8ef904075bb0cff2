"""The classifier of a prototype net as an ONNX file, for runtimes without PyTorch."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from flambeau.files import write_bytes
from flambeau.models.prototype_net import PrototypeNet


class _Classifier(nn.Module):
    def __init__(self, net: PrototypeNet):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.classify(x)


def export_prototype_onnx(net: PrototypeNet, path: str | os.PathLike, example: Tensor) -> None:
    """Write input ``x`` [batch, *shape] → outputs ``logits`` [batch, classes] and ``distances`` [batch, prototypes].

    The batch is free. With the distances and W (``net.head.weight``) another runtime can explain a prediction.

    Args:
        example: any batch of two or more inputs.

    Raises:
        ImportError: without the packages of ``pip install flambeau[onnx]``.
        ValueError: an example of fewer than two inputs, from which no free batch axis can be traced.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("exporting needs ONNX: pip install 'flambeau[onnx]'") from error
    if len(example) < 2:
        raise ValueError(f"example: got {len(example)} inputs, expected at least 2")
    training = net.training
    try:
        program = torch.onnx.export(
            _Classifier(net).eval(),
            (example.to(net.prototypes.device),),
            dynamo=True,
            input_names=["x"],
            output_names=["logits", "distances"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    finally:
        net.train(training)
    write_bytes(Path(path), program.model_proto.SerializeToString())
