"""How a made-up scanner degrades an image and stores it as a DICOM file."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.charset import default_encoding
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

Pixels = NDArray[np.float32]

DIGITAL_X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1")  # For Presentation
SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
DATE, TIME = "20240102", "120000"


@dataclass(frozen=True)
class Scanner:
    """One hospital's way to take and to store images.

    Attributes:
        gain: Contrast of the stored image.
        offset: Brightness added to it, as part of the grey scale.
        blur: Standard deviation of the point spread in pixels.
        noise: Standard deviation of the noise, as part of the grey scale.
        photometric: MONOCHROME1 stores dense tissue dark; viewers turn it round.
        bits: Bits stored of a grey pixel, 8 to 16; colour is always stored in 8.
        slope: Rescale slope of grey images.
        intercept: Rescale intercept of grey images.
        syntax: Transfer syntax, native little endian or RLE.
    """

    gain: float = 1.0
    offset: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2"
    bits: int = 8
    slope: float = 1.0
    intercept: float = 0.0
    syntax: UID = ExplicitVRLittleEndian

    @property
    def top(self) -> int:
        """Stored value of white: a multiple of 255, so that 8-bit images are stored exactly."""
        return 255 << (self.bits - 8)

    def expose(self, images: Pixels, rng: np.random.Generator) -> Pixels:
        """Apply gain, offset and noise to images in [0, 1]; the result is in [0, 1] too."""
        noise = rng.standard_normal(images.shape, np.float32) * np.float32(self.noise)
        return np.clip(images * np.float32(self.gain) + np.float32(self.offset) + noise, 0, 1)


# In DX files the standard wants slope 1 and intercept 0 (PS3.3 C.8.11.3). The second scanner
# breaks that on purpose, as archives meet it: readers must apply the rescale they find.
SCANNERS = (
    Scanner(blur=0.5, noise=0.02, photometric="MONOCHROME1", bits=10),
    Scanner(gain=0.85, offset=0.07, blur=0.8, noise=0.03, bits=12, slope=0.25, intercept=-100.0),
    Scanner(gain=0.95, offset=0.02, blur=0.3, noise=0.04, syntax=RLELossless),
    Scanner(gain=0.9, offset=0.0, blur=0.6, noise=0.03, bits=16, syntax=ImplicitVRLittleEndian),
)


def scanner(index: int) -> Scanner:
    """Return the scanner of the hospital with this index; later rounds of the list vary."""
    turns, place = divmod(index, len(SCANNERS))
    base = SCANNERS[place]
    fade = 1 - 0.04 * (turns % 5)
    return replace(base, gain=base.gain * fade, noise=base.noise * (1 + 0.2 * (turns % 4)))


@dataclass(frozen=True)
class Exam:
    """The tags around one image.

    Attributes:
        sop_class: DIGITAL_X_RAY or SECONDARY_CAPTURE.
        hospital: Name of the hospital.
        patient: Patient ID.
        sex: M, F, O or empty.
        age: Years, or None where it is not known.
        number: Which image of the patient, from 1.
        seed: The UIDs follow from it, the hospital, the patient and the number.
    """

    sop_class: UID
    hospital: str
    patient: str
    sex: str
    age: int | None
    number: int
    seed: int

    def uid(self, level: str, number: int = 0) -> UID:
        """A name-based UID under 2.25 (PS3.5 B.2, RFC 9562 version 5)."""
        name = f"{self.seed}/{self.hospital}/{self.patient}/{level}/{number}"
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}")


def to_dicom(image: Pixels, scanner: Scanner, exam: Exam) -> Dataset:
    """Store one image.

    Args:
        image: float32 [rows, columns] or [rows, columns, 3] in [0, 1].
        scanner: How to store it; colour is stored as 8-bit RGB, without window and rescale.
        exam: The tags around it.

    Returns:
        A data set ready for `dcmwrite`, with its file meta.
    """
    grey = image.ndim == 2
    data = Dataset()
    data.update(_common_tags(exam.sop_class, exam.hospital, scanner, grey))
    data.set_original_encoding(_native(scanner).is_implicit_VR, True, default_encoding)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = _native(scanner)
    _add_exam(data, exam)
    if grey:
        stored, photometric = _grey(image, scanner), str(scanner.photometric)
    else:
        stored, photometric = np.rint(image * np.float32(255)).astype(np.uint8), "RGB"
    bits = scanner.bits if grey else 8
    data.set_pixel_data(stored, photometric, bits, generate_instance_uid=False)
    if scanner.syntax == RLELossless:
        # The encoder of python-gdcm is faster, but ends the process at an odd number of pixels.
        data.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return data


def _native(scanner: Scanner) -> UID:
    return ExplicitVRLittleEndian if scanner.syntax == RLELossless else scanner.syntax


def _grey(image: Pixels, scanner: Scanner) -> NDArray[Any]:
    stored = np.rint(image * np.float32(scanner.top))
    if scanner.photometric == "MONOCHROME1":
        stored = scanner.top - stored
    return np.asarray(stored, np.uint8 if scanner.bits == 8 else np.uint16)


def _add_grey_scale(data: Dataset, scanner: Scanner) -> None:
    """Say what the stored values mean.

    The window is linear and reaches exactly from black to white: with centre (low + high + 1) / 2
    and width high - low + 1, PS3.3 C.11.2.1.2.1 maps low to the least output and high to the
    greatest.
    """
    low, high = scanner.intercept, scanner.intercept + scanner.slope * scanner.top
    data.RescaleIntercept, data.RescaleSlope = f"{low:g}", f"{scanner.slope:g}"
    data.RescaleType = "US"
    data.WindowCenter, data.WindowWidth = f"{(low + high + 1) / 2:.10g}", f"{high - low + 1:.10g}"
    inverted = scanner.photometric == "MONOCHROME1"
    data.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    if data.Modality == "DX":
        data.PixelIntensityRelationship = "LOG"
        data.PixelIntensityRelationshipSign = 1 if inverted else -1


def _add_exam(data: Dataset, exam: Exam) -> None:
    """The tags that differ between files; none depends on the image's class."""
    data.SOPInstanceUID = exam.uid("image", exam.number)
    data.StudyInstanceUID, data.SeriesInstanceUID = exam.uid("study"), exam.uid("series")
    data.PatientName, data.PatientID = f"Stand-in^{exam.patient}", exam.patient
    data.PatientSex, data.InstanceNumber = exam.sex, exam.number
    if exam.age is not None:
        data.PatientAge = f"{exam.age:03d}Y"


@lru_cache(maxsize=64)
def _common_tags(sop_class: UID, hospital: str, scanner: Scanner, grey: bool) -> Dataset:
    """The tags all files of a hospital share, kept encoded so that they are encoded only once."""
    data = Dataset()
    data.SOPClassUID = sop_class
    data.StudyDate = data.ContentDate = DATE
    data.StudyTime = data.ContentTime = TIME
    data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
    data.PatientBirthDate = ""
    data.Manufacturer, data.ManufacturerModelName = "Consilium", "Phantom"
    data.InstitutionName = hospital
    data.SeriesNumber = 1
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.LossyImageCompression = "00"
    if sop_class == SECONDARY_CAPTURE:
        data.Modality, data.ConversionType, data.PatientOrientation = "OT", "SYN", ""
    else:
        _add_chest_tags(data)
    if grey:
        _add_grey_scale(data, scanner)
    encoded = BytesIO()
    dcmwrite(
        encoded,
        data,
        implicit_vr=_native(scanner).is_implicit_VR,
        little_endian=True,
        enforce_file_format=False,
    )
    return dcmread(BytesIO(encoded.getvalue()), force=True)


def _add_chest_tags(data: Dataset) -> None:
    """What a DX file of the chest needs besides (PS3.3 A.26)."""
    data.Modality, data.PresentationIntentType = "DX", "FOR PRESENTATION"
    data.BodyPartExamined, data.ViewPosition = "CHEST", "PA"
    data.PatientOrientation, data.ImageLaterality = ["L", "F"], "U"
    data.Laterality = ""
    data.BurnedInAnnotation = "NO"
    data.ImagerPixelSpacing = ["3.2", "3.2"]
    data.DetectorType = "SCINTILLATOR"
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator = "51185008", "SCT"
    region.CodeMeaning = "Chest"
    data.AnatomicRegionSequence = [region]
    data.AcquisitionContextSequence = []
