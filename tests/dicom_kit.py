"""Builders of DICOM files: plain, compressed, and such as devices should not write."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gdcm
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

from client.data.pixels import decode
from client.data.reasons import Unusable
from shared.study import Input

DX = "1.2.840.10008.5.1.4.1.1.1.1"


def build_dicom(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """Return a DICOM file of [rows, columns] or [rows, columns, 3] or [frames, ...] pixels."""
    return written(make_dataset(pixels, syntax, **tags))


def make_dataset(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    """Return what `build_dicom` writes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DX
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = "DX"
    frames = tags.pop("frames", None)
    rows, columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    colour = pixels.ndim == (4 if frames else 3)
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = frames
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    return dataset


def written(dataset: Dataset) -> bytes:
    """Return a data set as a file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def encapsulated(pixels: np.ndarray, stream: bytes, syntax: str, **tags: Any) -> bytes:
    """Return a DICOM file whose header is that of the pixels, and whose one frame is a stream."""
    dataset = make_dataset(pixels, syntax, **tags)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def jpeg(pixels: np.ndarray, *, marker: bool = True, **options: Any) -> bytes:
    """Return a baseline JPEG stream; without `marker` its JFIF segment is cut out."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **{"quality": 95, "subsampling": 0, **options})
    stream = out.getvalue()
    length = int.from_bytes(stream[4:6], "big")
    return stream if marker else stream[:2] + stream[4 + length :]


def jpeg2000(pixels: np.ndarray, **options: Any) -> bytes:
    """Return a JPEG 2000 codestream, lossless unless the options say otherwise."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG2000", no_jp2=True, **options)
    return out.getvalue()


def transcoded(content: bytes, syntax: str) -> bytes:
    """Return a DICOM file compressed by GDCM, `syntax` as `gdcm.TransferSyntax` names it."""
    with TemporaryDirectory() as folder:
        source, target = f"{folder}/a.dcm", f"{folder}/b.dcm"
        Path(source).write_bytes(content)
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(source)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(target)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(target).read_bytes()


def lut_item(descriptor: list[int], data: bytes, vr: str = "US", data_vr: str = "OW") -> Dataset:
    """Return an item of a LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", vr, descriptor)
    item.add_new("LUTData", data_vr, data)
    return item


def blob(seed: int = 0, size: int = 28, high: int = 1000) -> np.ndarray:
    """Return a smooth picture of noise and one bright spot, uint16 up to `high` and a little."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    spot = np.exp(-((y - rng.uniform(0.3, 0.7)) ** 2 + (x - rng.uniform(0.3, 0.7)) ** 2) / 0.05)
    return (spot * high + rng.uniform(0, 50, (size, size))).astype(np.uint16)


def image(content: bytes, **spec: Any) -> np.ndarray:
    """Return what a site makes of a file: float32 [channels, size, size]."""
    return decode(io.BytesIO(content), Input(**{"size": 28, "window": "full", **spec}))[0]


def why_not(content: bytes, **spec: Any) -> str:
    """Return the code of the reason a file is set aside for, empty if it is not."""
    try:
        image(content, **spec)
    except Unusable as error:
        return error.reason.value
    return ""
