"""Why a file, a row or a patient is set aside: one code each, with what to do about it."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The codes a data report counts by."""

    MISSING_FILE = "missing-file"
    AMBIGUOUS_NAME = "ambiguous-name"
    OUTSIDE_FOLDER = "outside-folder"
    UNREADABLE_FILE = "unreadable-file"
    NOT_DICOM = "not-dicom"
    NO_PIXELS = "no-pixels"
    LOST_PIXELS = "lost-pixels"
    DAMAGED = "damaged"
    CONTRADICTORY = "contradictory"
    BAD_NUMBER = "bad-number"
    UNSUPPORTED_SYNTAX = "unsupported-syntax"
    CODEC_MISSING = "codec-missing"
    UNSUPPORTED_COLOUR = "unsupported-colour"
    WRONG_MODALITY = "wrong-modality"
    WRONG_KIND = "wrong-kind"
    NO_SUCH_FRAME = "no-such-frame"
    BLANK_IMAGE = "blank-image"
    TOO_SLOW = "too-slow"
    TOO_LARGE = "too-large"
    DECODER_CRASHED = "decoder-crashed"
    NO_LABEL = "no-label"
    INCOMPLETE_ROW = "incomplete-row"
    DUPLICATE_ROW = "duplicate-row"
    CONFLICTING_ROWS = "conflicting-rows"
    CLASS_NOT_IN_STUDY = "class-not-in-study"
    NO_PATIENT_ID = "no-patient-id"
    CONTRADICTORY_LABELS = "contradictory-labels"
    NO_KNOWN_FINDING = "no-known-finding"


PASSING = frozenset(
    {Reason.UNREADABLE_FILE, Reason.TOO_SLOW, Reason.TOO_LARGE, Reason.DECODER_CRASHED}
)
"""Reasons that may be gone next time: rights were missing, a file server hung, memory was short."""

EXPLANATIONS: dict[Reason, str] = {
    Reason.MISSING_FILE: "the labels table names a file that is not there; "
    "copy the file or remove its row",
    Reason.AMBIGUOUS_NAME: "several files have this name, but for capitals or Unicode form; "
    "write it as the folder has it",
    Reason.OUTSIDE_FOLDER: "the name or link leads out of the images folder; "
    "copy the file into the folder",
    Reason.UNREADABLE_FILE: "the file cannot be opened or read; check its access rights and the "
    "disk; it is tried again",
    Reason.NOT_DICOM: "not a DICOM file, or an empty one; export it again",
    Reason.NO_PIXELS: "a DICOM file that was never an image, such as a report or a plan; "
    "remove its row",
    Reason.LOST_PIXELS: "the header of an image, and no pixels behind it: cut off, or an element "
    "before them swallows the rest; export it again",
    Reason.DAMAGED: "cut off, or the decoder found pieces of the picture missing or spoilt; "
    "export it again from the archive",
    Reason.CONTRADICTORY: "the pixels are not of the size, number of frames, colours or bits that "
    "the header says; have the archive write it again uncompressed, or ask the maker of the device",
    Reason.BAD_NUMBER: "a number in the header (rescale, window, number of frames) is none, or "
    "cannot be; a new export gives the same: ask the maker of the device, or remove its row",
    Reason.UNSUPPORTED_SYNTAX: "compressed in a way that no decoder under a permissive licence "
    "reads (JPEG of 12 bits or below 8, arithmetic coding, video); have the archive write it "
    "uncompressed or as JPEG 2000 lossless",
    Reason.CODEC_MISSING: "the decoder of its compression is not installed here; install "
    "python-gdcm for JPEG, pyjpegls for JPEG-LS, pylibjpeg and pylibjpeg-openjpeg for JPEG 2000, "
    "pylibjpeg and pylibjpeg-rle for RLE",
    Reason.UNSUPPORTED_COLOUR: "a colour model that is not read (such as ARGB, CMYK, HSV, "
    "YBR_PARTIAL, or YBR of more than 8 bits); have the archive write it as RGB or grey",
    Reason.WRONG_MODALITY: "of a modality the study does not take; remove its row",
    Reason.WRONG_KIND: "of a kind the study does not ask for (input.kinds), such as a "
    "segmentation, a dose grid, a whole slide or a screen capture; name the image itself",
    Reason.NO_SUCH_FRAME: "has fewer frames than the study asks for; remove its row",
    Reason.BLANK_IMAGE: "every pixel shows the same grey, by its values or by its window; "
    "export it again",
    Reason.TOO_SLOW: "decoding took longer than compute.decode_seconds allows, of which a quarter "
    "may be processor time; it is tried again; if it stays so, raise the limit",
    Reason.TOO_LARGE: "decoding needed more than compute.decode_memory_mb allows; it is tried "
    "again; if it stays so, raise the limit",
    Reason.DECODER_CRASHED: "the decoder crashed on it; it is tried again; if it stays so, treat "
    "the file as hostile or damaged",
    Reason.NO_LABEL: "an image the labels table does not name; add a row if it belongs",
    Reason.INCOMPLETE_ROW: "a row without file name, patient or label; complete it",
    Reason.DUPLICATE_ROW: "says again what an earlier row says; remove it",
    Reason.CONFLICTING_ROWS: "several rows disagree about one file or patient; keep the right one",
    Reason.CLASS_NOT_IN_STUDY: "the label is not a class of the study; map it in data.values "
    "of site.toml, or remove the row",
    Reason.NO_PATIENT_ID: "nobody says whose image it is; fill the patient column, or set "
    "data.without_patient_id",
    Reason.CONTRADICTORY_LABELS: "the patient's rows carry different labels; correct the table",
    Reason.NO_KNOWN_FINDING: "none of the study's findings is known; fill one in, map what the "
    "table says in data.values of site.toml to 1 and 0, or remove the row",
}
"""For each code: what it means and what hospital IT can do."""


class Unusable(Exception):
    """One image cannot be used.

    Args:
        reason: The code it is set aside with.
    """

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(reason.value)
