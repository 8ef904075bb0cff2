"""Files written by the test with pydicom, as LIDC-IDRI has them."""

import csv
import sys

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra flambeau[medical] is not installed")

from flambeau.data.images.files import image_folder  # noqa: E402
from flambeau.data.medical import dicom  # noqa: E402


def write(path, stored, patient="LIDC-IDRI-0001", slope=1.0, intercept=-1024.0, frames=1):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.PatientID = CTImageStorage, meta.MediaStorageSOPInstanceUID, patient
    file.Rows, file.Columns = stored.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 1
    file.RescaleSlope, file.RescaleIntercept = slope, intercept
    if frames > 1:
        file.NumberOfFrames = frames
    file.PixelData = stored.astype("<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


STORED = np.arange(20).reshape(4, 5) * 100


def test_slope_and_intercept(tmp_path):
    write(tmp_path / "a.dcm", STORED, slope=2.0, intercept=-1000.0)
    hounsfield, patient = dicom.read_slice(tmp_path / "a.dcm")
    np.testing.assert_array_equal(hounsfield, 2 * STORED - 1000.0)
    assert patient == "LIDC-IDRI-0001"


def test_range_of_the_slice_and_window():
    hounsfield = np.array([[-1000.0, 0.0], [20.0, 3000.0]], np.float32)
    np.testing.assert_allclose(dicom.to_unit_range(hounsfield), [[0, 0.25], [0.255, 1]], atol=1e-6)
    np.testing.assert_allclose(dicom.to_unit_range(hounsfield, (40, 80)), [[0, 0], [0.25, 1]], atol=1e-6)
    assert not dicom.to_unit_range(np.full((2, 2), 7.0)).any()
    with pytest.raises(ValueError, match="window must be"):
        dicom.to_unit_range(hounsfield, (40, 0))


@pytest.mark.parametrize("format", ["png", "npz"])
def test_a_folder_is_prepared(tmp_path, format):
    write(tmp_path / "in" / "LIDC-IDRI-0001" / "s" / "1-1.dcm", STORED)
    write(tmp_path / "in" / "LIDC-IDRI-0002" / "s" / "1-1.dcm", STORED + 5, patient="LIDC-IDRI-0002")
    (tmp_path / "in" / "LIDC-IDRI-0001" / "s" / "069.xml").write_text("<annotation/>")
    rows = dicom.prepare_dicom(tmp_path / "in", tmp_path / "out", window=(-600, 1500), format=format)
    assert [row["patient"] for row in rows] == ["LIDC-IDRI-0001", "LIDC-IDRI-0002"]
    with (tmp_path / "out" / "slices.csv").open() as file:
        assert list(csv.DictReader(file)) == rows
    expected = (np.clip(STORED - 1024.0, -1350, 150) + 1350) / 1500
    if format == "png":
        found = image_folder(tmp_path / "out", gray=True).images
        np.testing.assert_allclose(found[0, 0], expected, atol=0.5 / 255 + 1e-6)
    else:
        with np.load(tmp_path / "out" / rows[0]["image"], allow_pickle=False) as arrays:
            np.testing.assert_allclose(arrays["image"], expected, atol=1e-6)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a.dcm cannot be read as a DICOM slice"):
        dicom.read_slice(tmp_path / "a.dcm")
    write(tmp_path / "b.dcm", np.stack([STORED, STORED]), frames=2)
    with pytest.raises(ValueError, match="one grey frame"):
        dicom.read_slice(tmp_path / "b.dcm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no DICOM files"):
        dicom.prepare_dicom(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(NotADirectoryError):
        dicom.prepare_dicom(tmp_path / "a.dcm", tmp_path / "out")
    with pytest.raises(ValueError, match="format must be"):
        dicom.prepare_dicom(tmp_path / "empty", tmp_path / "out", format="jpg")


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flambeau\[medical\]'"):
        dicom.read_slice(tmp_path / "a.dcm")
