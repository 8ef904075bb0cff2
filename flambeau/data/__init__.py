"""What goes in: embedded sets and real-format loaders, by modality."""

from flambeau.data.angle_folder import angle_folder
from flambeau.data.batches import Batches
from flambeau.data.graphs import Graph, karate_club
from flambeau.data.image_files import image_folder, mnist_idx, read_idx, read_image
from flambeau.data.images import PHOTOS, ImageSet, digits, faces, photo, photos
from flambeau.data.labelled import LabelledCases, labelled_cases
from flambeau.data.masked_language import MaskedLanguage, MaskedPairs, mask_tokens
from flambeau.data.seeding import derive_generator, derive_seed
from flambeau.data.tables import Table, breast_cancer, diabetes, iris, read_table, wine
from flambeau.data.text import ByteTokenizer, pydoc_text, pydoc_topics, text_file, token_windows
from flambeau.data.transforms import elastic_deform, random_shift

__all__ = [
    "Batches",
    "ByteTokenizer",
    "Graph",
    "ImageSet",
    "LabelledCases",
    "MaskedLanguage",
    "MaskedPairs",
    "PHOTOS",
    "Table",
    "angle_folder",
    "breast_cancer",
    "derive_generator",
    "derive_seed",
    "diabetes",
    "digits",
    "elastic_deform",
    "faces",
    "image_folder",
    "iris",
    "karate_club",
    "labelled_cases",
    "mask_tokens",
    "mnist_idx",
    "photo",
    "photos",
    "pydoc_text",
    "pydoc_topics",
    "random_shift",
    "read_idx",
    "read_image",
    "read_table",
    "text_file",
    "token_windows",
    "wine",
]
