"""Views for contrastive pre-training of images whose channels are no colours."""

from __future__ import annotations

from flambeau.data.augment import ColorJitter, Compose, GaussianBlur, RandomFlip, RandomResizedCrop, Views


def medical_views(
    size: int | tuple[int, int], *, scale: tuple[float, float] = (0.3, 1.0), local: int = 0, pixels: float = 224.0
) -> Views:
    """Two random crops of `size`, and `local` ones of half of it that show 5 % to 30 % of the image (multi-crop).

    Crops, mirror images, brightness, contrast and blur suit one channel and any number of them (computed tomography,
    multi-spectral tiles); hue, saturation and grey, which need red, green and blue, are left out. The blur of MoCo v2
    (standard deviation 0.1 to 2 at 224 `pixels`) is scaled to the size. Raises ValueError for a negative `local`.
    """
    if local < 0:
        raise ValueError(f"local must not be negative, got {local}")
    height, width = (size, size) if isinstance(size, int) else size
    blur = max(0.15, 2.0 * min(height, width) / pixels)
    colour = Compose(RandomFlip(), ColorJitter(brightness=0.4, contrast=0.4), GaussianBlur(0.5, (0.1, blur)))
    large = Compose(RandomResizedCrop((height, width), scale), colour)
    small = Compose(RandomResizedCrop((max(1, height // 2), max(1, width // 2)), (0.05, 0.3)), colour)
    return Views(large, large, *[small] * local)
