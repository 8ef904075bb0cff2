"""What goes in: embedded sets and real-format loaders, by modality."""

from flambeau.data.augment import (
    ColorJitter,
    Compose,
    GaussianBlur,
    Normalize,
    RandomFlip,
    RandomGrayscale,
    RandomResizedCrop,
    Solarize,
    Views,
    rotate_quarter,
)
from flambeau.data.augment.deform import elastic_deform, random_shift
from flambeau.data.batches import Batches
from flambeau.data.graphs import Graph, karate_club
from flambeau.data.images.angle_folder import angle_folder
from flambeau.data.images.files import image_folder, mnist_idx, read_idx, read_image
from flambeau.data.images.image_list import image_list
from flambeau.data.images.image_set import PHOTOS, ImageSet, digits, faces, photo, photos
from flambeau.data.images.near_duplicates import without_near_duplicates
from flambeau.data.images.public import (
    cifar10,
    cifar100,
    cub,
    flowers,
    in_memory,
    pets,
    pictures,
    stl10,
    stl10_unlabeled,
)
from flambeau.data.labelled import LabelledCases, labelled_cases
from flambeau.data.medical.head_phantoms import head_phantoms
from flambeau.data.medical.images import medical_images
from flambeau.data.medical.medmnist import medmnist, medmnist_volumes
from flambeau.data.medical.views import medical_views
from flambeau.data.seeding import derive_generator, derive_seed
from flambeau.data.tables import Table, breast_cancer, diabetes, iris, read_table, wine
from flambeau.data.text.masked_language import MaskedLanguage, MaskedPairs, mask_tokens
from flambeau.data.text.plain import ByteTokenizer, pydoc_text, pydoc_topics, text_file, token_windows

__all__ = [
    "Batches",
    "ByteTokenizer",
    "ColorJitter",
    "Compose",
    "GaussianBlur",
    "Graph",
    "ImageSet",
    "LabelledCases",
    "MaskedLanguage",
    "MaskedPairs",
    "Normalize",
    "PHOTOS",
    "RandomFlip",
    "RandomGrayscale",
    "RandomResizedCrop",
    "Solarize",
    "Table",
    "Views",
    "angle_folder",
    "breast_cancer",
    "cifar10",
    "cifar100",
    "cub",
    "derive_generator",
    "derive_seed",
    "diabetes",
    "digits",
    "elastic_deform",
    "faces",
    "flowers",
    "head_phantoms",
    "image_folder",
    "image_list",
    "in_memory",
    "iris",
    "karate_club",
    "labelled_cases",
    "mask_tokens",
    "medical_images",
    "medical_views",
    "medmnist",
    "medmnist_volumes",
    "mnist_idx",
    "pets",
    "photo",
    "photos",
    "pictures",
    "pydoc_text",
    "pydoc_topics",
    "random_shift",
    "read_idx",
    "read_image",
    "read_table",
    "rotate_quarter",
    "stl10",
    "stl10_unlabeled",
    "text_file",
    "token_windows",
    "wine",
    "without_near_duplicates",
]
