"""Image classifiers of ``transformers`` as plain modules: images in, logits out."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class HuggingFaceClassifier(nn.Module):
    """A transformers model for image classification that returns its logits; grey images are repeated to its channels.

    Args:
        model: a ``...ForImageClassification``.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        channels = getattr(self.model.config, "num_channels", x.shape[1])
        return self.model(pixel_values=x.expand(-1, channels, -1, -1)).logits


def pretrained_classifier(name: str, classes: int) -> HuggingFaceClassifier:
    """A model of a folder or of the Hugging Face hub, with a new head where it has another number of classes.

    Raises:
        ModuleNotFoundError: without ``pip install flambeau[hf]``.
    """
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ModuleNotFoundError("models of transformers need: pip install 'flambeau[hf]'") from error
    model = AutoModelForImageClassification.from_pretrained(name, num_labels=classes, ignore_mismatched_sizes=True)
    return HuggingFaceClassifier(model)
