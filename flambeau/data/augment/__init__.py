"""Augmentation of image batches: vectorised, seeded, and for any number of channels.

Every part is a callable ``part(images, generator) -> images`` on a float batch [B, C, H, W] in [0, 1]. Each image draws
parameters of its own. They are drawn on the CPU, so that the state of `generator` (on the CPU; None is the global one)
decides them on every device. A part is also a ``transform`` for :class:`flambeau.data.Batches` of a tensor.
"""

from flambeau.data.augment.geometric import RandomFlip, RandomResizedCrop, rotate_quarter
from flambeau.data.augment.photometric import ColorJitter, GaussianBlur, Normalize, RandomGrayscale, Solarize
from flambeau.data.augment.views import Compose, Views

__all__ = [
    "ColorJitter",
    "Compose",
    "GaussianBlur",
    "Normalize",
    "RandomFlip",
    "RandomGrayscale",
    "RandomResizedCrop",
    "Solarize",
    "Views",
    "rotate_quarter",
]
