"""Images: the sets that come with the library, and readers of the user's own and of public ones."""

from flambeau.data.images.angle_folder import angle_folder
from flambeau.data.images.files import image_folder, mnist_idx, read_idx, read_image
from flambeau.data.images.image_set import PHOTOS, ImageSet, digits, faces, photo, photos

__all__ = [
    "ImageSet",
    "PHOTOS",
    "angle_folder",
    "digits",
    "faces",
    "image_folder",
    "mnist_idx",
    "photo",
    "photos",
    "read_idx",
    "read_image",
]
