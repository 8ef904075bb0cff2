import gzip
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from flambeau.data import image_folder, mnist_idx, read_idx, read_image
from flambeau.data.images import files


def picture(path, width=6, height=4, value=128, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    Image.fromarray(np.full(shape, value, np.uint8), mode=None).save(path)
    return path


def test_class_folders_and_flat_folders(tmp_path):
    picture(tmp_path / "a" / "cat" / "1.png", value=255)
    picture(tmp_path / "a" / "dog" / "1.JPG", value=0)
    picture(tmp_path / "a" / "dog" / "2.png", value=51)
    (tmp_path / "a" / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".hidden").mkdir()
    data = image_folder(tmp_path / "a")
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1, 1]
    assert data.images.shape == (3, 3, 4, 6) and data.images[:, 0, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    flat = image_folder(tmp_path / "a" / "dog", gray=True)
    assert flat.labels is None and flat.images.shape == (2, 1, 4, 6)


def test_sizes_modes_and_orientation(tmp_path):
    picture(tmp_path / "wide.png", 40, 10)
    assert read_image(tmp_path / "wide.png", size=(5, 7)).shape == (3, 5, 7)
    assert read_image(tmp_path / "wide.png", size=5, gray=True).shape == (1, 5, 5)
    turned = Image.new("RGB", (6, 4))
    exif = turned.getexif()
    exif[274] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 6, 4)
    deep = np.array([[0, 1], [32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert torch.equal(
        read_image(tmp_path / "deep.png", gray=True)[0], torch.from_numpy(deep.astype(np.float32) / 65535)
    )
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0] = 255  # the upper row is opaque white, the lower one fully transparent
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png")[:, :, 0].tolist() == [[1.0, 0.0]] * 3


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no pictures"):
        image_folder(tmp_path / "empty")
    picture(tmp_path / "sizes" / "1.png", 6, 4)
    picture(tmp_path / "sizes" / "2.png", 8, 4)
    with pytest.raises(ValueError, match=r"2.png has 8x4 pixels and .*1.png 6x4; pass size"):
        image_folder(tmp_path / "sizes")
    picture(tmp_path / "half" / "cat" / "1.png")
    (tmp_path / "half" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog holds no pictures"):
        image_folder(tmp_path / "half")
    picture(tmp_path / "half" / "loose.png")
    with pytest.raises(ValueError, match="loose.png lies beside the class folders cat"):
        image_folder(tmp_path / "half")
    for name, content in (("text.png", b"hello"), ("cut.png", (tmp_path / "sizes" / "1.png").read_bytes()[:50])):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            image_folder(tmp_path / "broken")
        (tmp_path / "broken" / name).unlink()


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match="bomb.png has 12000x12000 pixels; at most"):
        image_folder(tmp_path)


def test_a_set_that_would_not_fit_is_refused(tmp_path, monkeypatch):
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    monkeypatch.setattr(files, "MAX_VALUES", 150)
    with pytest.raises(ValueError, match="exceed 150 values at .*2.png"):
        image_folder(tmp_path)


def idx(array):
    return (
        b"\0\0\x08" + bytes([array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape) + array.tobytes()
    )


IMAGES = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
LABELS = np.array([0, 1, 2, 1, 0], np.uint8)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_files(tmp_path, zipped):
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", IMAGES), (f"{part}-labels-idx1-ubyte", LABELS)):
            content = idx(array)
            (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    data = mnist_idx(tmp_path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(IMAGES).float() / 255)
    assert data.labels.tolist() == LABELS.tolist() and data.classes == ["0", "1", "2"]
    assert len(mnist_idx(tmp_path, train=False)) == 5
    assert len(mnist_idx(tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * zipped))) == 5


def test_bad_idx_files_are_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte is missing"):
        mnist_idx(tmp_path)
    whole = idx(IMAGES)
    for content, message in (
        (b"", "begins with nothing"),
        (b"\x89PNG....", "is no IDX file of unsigned bytes: it begins with 89 50 4e 47"),
        (whole[:7], "ends within its header"),
        (whole[:-1], r"announces 30 bytes \(\(5, 3, 2\)\) and holds 29"),
        (whole + b"x", "and holds more"),
        (gzip.compress(whole)[:-12], "cannot be read"),
        (gzip.compress(whole + bytes(10**6)), "and holds more"),
        (b"\0\0\x08\x03" + struct.pack(">III", 2**31, 2**20, 2**20), "at most 2147483648 are read"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_idx(path)
    path.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:4]))
    with pytest.raises(ValueError, match=r"got \[5, 3, 2\] and \[4\]"):
        mnist_idx(tmp_path)
