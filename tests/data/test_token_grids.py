import io
import tarfile

import numpy as np
import pytest
import torch

from flambeau.data.token_grids import TokenGrids, digit_tokens, extract_codes, moving_digits, read_codes, write_codes


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def array(values):
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def test_digits_are_their_grey_levels():
    grids = digit_tokens()
    assert grids.grid == (8, 8) and len(grids) == 1797 and grids.vocab == 17 and grids.tokens.max() == 16
    train, test = grids.split(297, seed=3)
    assert len(train) == 1500 and len(test) == 297
    again = grids.split(297, seed=3)[1]
    assert torch.equal(test.tokens, again.tokens) and not torch.equal(test.tokens, grids.split(297, seed=4)[1].tokens)


def test_clips_hold_one_digit_that_moves_and_stays_inside():
    clips = moving_digits(20, frames=6, size=11, levels=5)
    assert clips.grid == (6, 11, 11) and clips.tokens.max() == 4
    mass = clips.tokens.flatten(2).sum(2)
    assert (mass == mass[:, :1]).all()  # never cut off at a wall
    assert (clips.tokens[:, 1:] != clips.tokens[:, :-1]).flatten(1).any(1).all()


def test_codes_go_through_a_file(tmp_path):
    grids = TokenGrids(torch.randint(0, 9, (6, 3, 4)), 9, torch.arange(6) % 2, 2)
    write_codes(tmp_path / "a.npz", grids)
    read = read_codes(tmp_path / "a.npz", vocab=9)
    assert torch.equal(read.tokens, grids.tokens) and torch.equal(read.labels, grids.labels)
    assert len(read_codes(tmp_path, vocab=9)) == 6


def test_a_web_dataset_is_read_with_its_crops(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for sample in range(3):
            add(archive, f"{sample}.npy", array(np.full((10, 2, 2), sample)))
            add(archive, f"{sample}.cls", str(sample).encode())
    grids = read_codes(tmp_path)
    assert grids.tokens.shape == (30, 2, 2) and grids.labels.bincount().tolist() == [10, 10, 10]


def test_ten_crops_are_corners_centre_and_mirror_images():
    images = torch.arange(2 * 16.0).view(2, 1, 4, 4)
    codes = extract_codes(lambda part: part[:, 0].long(), images, 2)
    assert codes.shape == (2, 10, 2, 2)
    assert codes[0, 0].tolist() == [[0, 1], [4, 5]] and codes[0, 3].tolist() == [[10, 11], [14, 15]]
    assert codes[0, 4].tolist() == [[5, 6], [9, 10]] and codes[0, 5].tolist() == [[1, 0], [5, 4]]
    with pytest.raises(ValueError, match="crop must lie in 1..4, got 5"):
        extract_codes(lambda part: part, images, 5)


def test_damaged_and_hostile_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_codes(tmp_path / "nothing.npz")
    with pytest.raises(FileNotFoundError, match="holds no .npz"):
        read_codes(tmp_path)
    path = tmp_path / "a.npz"
    np.savez(path, codes=np.array([[{"a": 1}]], dtype=object))
    with pytest.raises(ValueError, match=r"a.npz"):
        read_codes(path)
    for arrays, message in (
        ({"other": np.zeros((2, 2), int)}, "no array named codes"),
        ({"codes": np.zeros((2, 2, 2))}, "whole numbers"),
        ({"codes": np.zeros((2, 2, 2), int), "labels": np.zeros(3, int)}, "labels must have shape"),
        ({"codes": np.full((2, 2, 2), -1)}, "at least 0"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            read_codes(path)
    write_codes(path, TokenGrids(torch.zeros(2, 2, 2, dtype=torch.long), 1))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="a.npz"):
        read_codes(path)
    path.unlink()
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        add(archive, "0.cls", b"1")
    with pytest.raises(ValueError, match="0.npy is missing"):
        read_codes(tmp_path)
    (tmp_path / "b.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        read_codes(tmp_path)


def test_grids_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="tokens must lie in 0..2, got 0..3"):
        TokenGrids(torch.arange(4).view(1, 2, 2), 3)
    with pytest.raises(ValueError, match="labels must have shape"):
        TokenGrids(torch.zeros(2, 2, dtype=torch.long), 1, torch.zeros(3, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="test must lie in"):
        digit_tokens().split(2000)
