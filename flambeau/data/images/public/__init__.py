"""Image sets of self-supervised learning, read from their published files. Nothing is downloaded.

Sets of small images (CIFAR, STL-10) come as an :class:`~flambeau.data.ImageSet`; sets of photographs as
:class:`Pictures`, which decodes a file when it is asked for. Both are fed to :class:`~flambeau.data.Batches`.
"""

from flambeau.data.images.public.cifar import cifar10, cifar100
from flambeau.data.images.public.cub import cub
from flambeau.data.images.public.flowers import flowers
from flambeau.data.images.public.pets import pets
from flambeau.data.images.public.pictures import Pictures, in_memory, pictures
from flambeau.data.images.public.stl10 import StoredImages, stl10, stl10_unlabeled

__all__ = [
    "Pictures",
    "StoredImages",
    "cifar10",
    "cifar100",
    "cub",
    "flowers",
    "in_memory",
    "pets",
    "pictures",
    "stl10",
    "stl10_unlabeled",
]
