"""Damage DICOM files at random: each is refused in time, or its picture is another decoder's too.

    python benchmarks/mutants.py [MUTANTS] [--seed N] [--out FILE]

Sources are pydicom's own test files, `$CONSILIUM_DATA` (or `../shared/data`) if it is there, and
files made here in every compression there is an encoder for. A mutant has bytes changed, a hole,
its end cut off, an end marker put where it was cut, or a length in its header made false.

Each goes through the decoding process with a site's default limits, and must not take more than
five seconds of processor time or more than its memory. Of those that are accepted the stored
values are compared with those of a second decoder on the same bytes, in a process of their own:

| coding | decoder | compared with |
|---|---|---|
| uncompressed | pydicom | the same bytes read here with numpy alone |
| RLE | pylibjpeg-rle | pydicom's own |
| JPEG, 8 bits | gdcm (libjpeg) | Pillow (libjpeg-turbo) |
| JPEG 2000 | pylibjpeg-openjpeg | Pillow: OpenJPEG too, so no other origin |
| JPEG-LS | pyjpegls | gdcm: CharLS too, so no other origin |
| lossless JPEG | gdcm | nothing: no other decoder under a permissive licence is at hand |

The most processor time is five seconds as soon as a process was ended at one of its limits.
Lossless codings must agree in every value, lossy ones within two levels, as must YBR of 8 bits.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from common import write_results
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGLSTransferSyntaxes,
    RLELossless,
    UncompressedTransferSyntaxes,
)

from client.data.frames import frame_count, read_frame, transfer_syntax
from client.data.pixels import FAULTS
from client.data.worker import DecodeWorker
from client.site import Compute
from shared.study import Input

SPEC = Input(size=64, kinds=("image", "segmentation", "dose", "whole-slide", "screen-capture"))
LIMITS = Compute()
PROCESSOR_SECONDS = 5.0
LONGEST_COMPARISON = 60

DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"


def sources() -> dict[str, bytes]:
    """Return every file there is that can be decoded as it is, by name."""
    paths = [Path(path) for path in get_testdata_files()]
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CONSILIUM_DATA", default))
    if folder.is_dir():
        paths += sorted((folder / "dicom_edge").rglob("*.dcm"))
        paths += sorted((folder / "ct_contrast").rglob("*.dcm"))[:5]
    found = {path.name: path.read_bytes() for path in paths if path.is_file()} | made()
    with DecodeWorker(SPEC, seconds=60, memory_mb=2048) as worker:
        return {name: content for name, content in found.items() if accepted(worker, content)}


def accepted(worker: DecodeWorker, content: bytes) -> bool:
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        return worker.decode(file.name).reason is None


def made() -> dict[str, bytes]:
    """Return one grey and one colour picture in every compression there is an encoder for."""
    y, x = np.mgrid[:96, :128]
    grey = (120 + 80 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    colours = np.stack([grey, 255 - grey, grey // 2 + 40], axis=-1)
    found = {}
    for name, pixels in (("grey", grey), ("colour", colours)):
        colour = pixels.ndim == 3
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DIGITAL_X_RAY
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = 3 if colour else 1
        dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = pixels.tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        found[f"made {name}"] = plain = saved(dataset)
        for syntax in ("RLELossless", "JPEGLSLossless", "JPEGLosslessProcess14_1"):
            found[f"made {name} {syntax}"] = transcoded(plain, syntax)
        for syntax, kind in ((JPEGBaseline8Bit, "JPEG"), (JPEG2000Lossless, "JPEG2000")):
            stream = io.BytesIO()
            options = {"no_jp2": True, "mct": int(colour)} if kind == "JPEG2000" else {}
            Image.fromarray(pixels).save(stream, kind, **options)
            dataset.PixelData = encapsulate([stream.getvalue()])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
            found[f"made {name} {kind}"] = saved(dataset)
    return found


def saved(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def transcoded(content: bytes, syntax: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/a.dcm", f"{folder}/b.dcm"
        Path(source).write_bytes(content)
        reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(source)
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(target)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.Write()
        return Path(target).read_bytes()


def mutant(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Return a kind of damage, and a file that has it."""
    body, size = bytearray(content), len(content)
    kind = chance.choice(["header", "anywhere", "hole", "cut", "cut and closed", "length"])
    place = chance.randrange(min(132, size - 1), size)
    if kind in ("header", "anywhere"):
        end = min(size, 4096) if kind == "header" else size
        for _ in range(chance.choice([1, 1, 2, 4, 8])):
            body[chance.randrange(min(132, end - 1), end)] = chance.randrange(256)
    elif kind == "hole":
        length = min(size - place, chance.choice([8, 64, 300, 2000]))
        body[place : place + length] = bytes(length)
    elif kind == "length":
        at = chance.randrange(min(132, size - 9), min(size, 4096) - 8)
        body[at : at + 4] = chance.choice([2**31, 2**32 - 2, size, 0, 2**16]).to_bytes(4, "little")
    else:
        body = body[:place] + (b"\xff\xd9" if kind == "cut and closed" else b"")
        if kind == "cut and closed":
            body += b"\0" * (len(body) % 2) + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return kind, bytes(body)


def processor_seconds(pid: int | None) -> float:
    """Return the processor time a process has used, 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int | None) -> float:
    """Return the most memory a process has used, 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def compared(path: str) -> str:
    """Return how the values of an accepted file compare with a second decoder's."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=compare_into, args=(theirs, path))
    child.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(LONGEST_COMPARISON) else "second decoder too slow"
    except EOFError:
        return "second decoder crashed"
    finally:
        child.kill()
        child.join()


def compare_into(answer: Connection, path: str) -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    try:
        answer.send(comparison(dcmread(path, force=True)))
    except FAULTS as error:
        answer.send(f"second decoder refuses: {type(error).__name__}")


def comparison(dataset: Dataset) -> str:
    syntax = transfer_syntax(dataset)
    if "PixelData" not in dataset:
        return "not compared: floating point"
    if int(dataset.get("HighBit") or 0) != int(dataset.BitsStored) - 1:
        return "not compared: pydicom takes no account of the high bit"
    index = min(frame_count(dataset) // 2, frame_count(dataset) - 1)
    plugin, tolerance, coding = "", 0, "uncompressed"
    if syntax == RLELossless:
        plugin, coding = "pydicom", "RLE"
    elif syntax in JPEG2000TransferSyntaxes:
        plugin, coding, tolerance = "pillow", "JPEG 2000 (same origin)", 2
    elif syntax in JPEGLSTransferSyntaxes:
        plugin, coding = "gdcm", "JPEG-LS (same origin)"
    elif syntax == JPEGBaseline8Bit:
        plugin, coding, tolerance = "pillow", "JPEG", 2
    elif syntax not in UncompressedTransferSyntaxes:
        return "no second decoder: lossless JPEG"
    if coding == "uncompressed":
        if str(dataset.PhotometricInterpretation).startswith("YBR") or dataset.BitsAllocated % 8:
            return "not compared: uncompressed chroma or single bits"
        theirs = plain_values(dataset, index)
    else:
        theirs, _ = get_decoder(syntax).as_array(dataset, index=index, decoding_plugin=plugin)
    ours = read_frame(dataset, index).values
    if ours.shape != theirs.shape:
        return f"{coding}: DIFFERS in shape"
    apart = int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max())
    return f"{coding}: {'agrees' if apart <= tolerance else 'DIFFERS'}"


def plain_values(dataset: Dataset, index: int) -> np.ndarray:
    """Read one uncompressed frame with numpy alone."""
    big = transfer_syntax(dataset) == ExplicitVRBigEndian
    size, bits = dataset.BitsAllocated // 8, int(dataset.BitsStored)
    data, words_swapped = dataset.PixelData, big and size == 1 and dataset["PixelData"].VR == "OW"
    if words_swapped:
        data = np.frombuffer(data, "<u2").byteswap().tobytes()
    shape = [dataset.Rows, dataset.Columns]
    if dataset.SamplesPerPixel > 1:
        by_plane = dataset.PlanarConfiguration == 1
        shape = [dataset.SamplesPerPixel, *shape] if by_plane else [*shape, dataset.SamplesPerPixel]
    count = int(np.prod(shape))
    words = np.frombuffer(data, f"{'>' if big else '<'}u{size}", count, index * count * size)
    values = words.astype(np.int64).reshape(shape) % 2**bits
    if dataset.PixelRepresentation:
        values -= (values >= 2 ** (bits - 1)) * 2**bits
    return np.moveaxis(values, 0, -1) if dataset.SamplesPerPixel > 1 and by_plane else values


def main() -> int:
    """Damage, decode and compare; return 1 unless every limit and every comparison held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mutants", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write here instead of to results/")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    files = sources()
    outcomes: Counter[str] = Counter()
    comparisons: Counter[str] = Counter()
    bad: list[str] = []
    slowest = largest = 0.0
    limits = {"seconds": LIMITS.decode_seconds, "memory_mb": LIMITS.decode_memory_mb}
    with tempfile.TemporaryDirectory() as folder, DecodeWorker(SPEC, **limits) as worker:
        path, whole = Path(folder) / "mutant.dcm", Path(folder) / "whole.dcm"
        whole.write_bytes(files["made grey"])
        for number in range(options.mutants):
            name = chance.choice(sorted(files))
            kind, content = mutant(files[name], chance)
            path.write_bytes(content)
            if worker.pid is None:
                worker.decode(str(whole))  # starts the process, which is not the file's doing
            pid, before = worker.pid, processor_seconds(worker.pid)
            reason = worker.decode(str(path)).reason
            # A process that is gone was ended at its limits.
            took = processor_seconds(pid) - before if worker.pid == pid else PROCESSOR_SECONDS
            outcomes[reason.value if reason else "accepted"] += 1
            slowest, largest = max(slowest, took), max(largest, resident_mb(worker.pid))
            said = "" if reason else compared(str(path))
            if said:
                comparisons[said] += 1
            if took > PROCESSOR_SECONDS or "DIFFERS" in said:
                bad.append(f"{number}: {name}, {kind}: {said or reason}, {took:.1f} s")
    result: dict[str, Any] = {
        "mutants": options.mutants,
        "sources": len(files),
        "outcomes": dict(outcomes.most_common()),
        "comparisons": dict(comparisons.most_common()),
        "most_processor_seconds": round(slowest, 2),
        "most_resident_mb": round(largest),
        "bad": bad,
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result))
    else:
        write_results("mutants", f"python benchmarks/mutants.py {options.mutants}", result)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
