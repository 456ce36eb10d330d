"""The decoding process against files that want to harm it."""

from __future__ import annotations

import os
import resource
import signal
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_kit import blob, build_dicom, transcoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.data.pixels import decode
from client.data.reasons import Reason
from client.data.worker import DecodeWorker
from client.site import Compute
from shared.study import Input

FOLDER = Path(get_testdata_file("CT_small.dcm", download=False)).parent
SPEC = Input(size=28, window="full")


def worker(seconds: float = 60, memory_mb: int = 256) -> DecodeWorker:
    return DecodeWorker(SPEC, seconds=seconds, memory_mb=memory_mb)


@pytest.fixture
def good(tmp_path, dicom, ramp):
    path = tmp_path / "good.dcm"
    path.write_bytes(dicom(ramp, PatientID=" P 7 "))
    return str(path)


def deflated(junk: bytes, times: int) -> bytes:
    """A deflated DICOM file of a few kilobytes whose data set unpacks to times x junk."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    stream = DicomBytesIO(b"\0" * 128 + b"DICM")
    stream.seek(132)
    write_file_meta_info(stream, meta)
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = b"".join(squeeze.compress(junk) for _ in range(times)) + squeeze.flush()
    return stream.getvalue() + body


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """Twelve million empty elements in a small file: reading them takes far too long."""
    path = tmp_path_factory.mktemp("endless") / "endless.dcm"
    path.write_bytes(deflated(b"\x09\x00\x10\x00LO\0\0" * 2**17, 96))
    assert path.stat().st_size < 2**20
    return str(path)


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """A quarter of a gigabyte of zeros in a quarter of a megabyte."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.dcm"
    path.write_bytes(deflated(bytes(2**20), 256))
    assert path.stat().st_size < 2**20
    return str(path)


def test_the_process_gives_what_decoding_here_gives(good):
    with worker() as process:
        result = process.decode(good)
        named = process.decode(good, want_patient=True)
    with open(good, "rb") as file:
        assert np.array_equal(result.image, decode(file, SPEC)[0])
    assert (result.patient, named.patient) == ("", "P 7")
    assert result.reason is None


def test_one_process_serves_all_files_and_none_is_left(good):
    with worker() as process:
        assert process.pid is None
        process.decode(good)
        first = process.pid
        for _ in range(20):
            process.decode(good)
        assert process.pid == first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_it_writes_no_core_dump_and_no_file(good):
    with worker() as process:
        process.decode(good)
        assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == (0, 0)


def test_it_sees_nothing_of_the_environment_it_does_not_need(good, monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    with worker() as process:
        process.decode(good)
        assert b"PASSWORD" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_a_decompression_bomb_is_too_large_and_the_next_file_is_fine(bomb, good):
    with worker(memory_mb=64) as process:
        assert process.decode(good).reason is None
        assert process.decode(bomb).reason == Reason.TOO_LARGE
        assert process.decode(good).reason is None


@pytest.mark.parametrize(
    "syntax",
    ["JPEG2000Lossless", "JPEGLosslessProcess14_1", "RLELossless", "JPEGLSLossless"],
)
def test_a_picture_too_large_for_its_codec_is_no_damage_and_no_crash(tmp_path, syntax):
    pixels = np.kron(blob(1, size=64, high=3500), np.ones((48, 48), np.uint16))
    (tmp_path / "large.dcm").write_bytes(transcoded(build_dicom(pixels), syntax))
    path = str(tmp_path / "large.dcm")
    with worker(memory_mb=80) as process:
        assert process.decode(path).reason == Reason.TOO_LARGE
    with worker(memory_mb=400) as process:
        assert process.decode(path).reason is None


def test_an_endless_file_is_killed_and_the_next_file_is_fine(endless, good):
    with worker(seconds=3, memory_mb=1024) as process:
        assert process.decode(endless).reason == Reason.TOO_SLOW
        assert process.pid is None
        assert process.decode(good).reason is None


def test_by_default_no_file_takes_more_than_five_seconds_of_processor_time(endless):
    limits = Compute()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with worker(seconds=limits.decode_seconds, memory_mb=limits.decode_memory_mb) as process:
        assert process.decode(endless).reason == Reason.TOO_SLOW
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    starting = 4
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5 + starting


def test_a_crash_in_mid_file_is_the_files_and_the_next_file_is_fine(endless, good):
    with worker(memory_mb=1024) as process:
        results = []
        decoding = threading.Thread(target=lambda: results.append(process.decode(endless)))
        decoding.start()
        while endless not in opened_by(process.pid):
            assert decoding.is_alive()
        os.kill(process.pid, signal.SIGSEGV)
        decoding.join()
        assert results[0].reason == Reason.DECODER_CRASHED
        assert process.decode(good).reason is None


def opened_by(pid: int | None) -> set[str]:
    """The files a process has open; empty while there is no process."""
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            found.add(os.readlink(link))
    except OSError:
        return found
    return found


def test_a_process_that_died_between_files_costs_no_file(good):
    with worker() as process:
        process.decode(good)
        first = process.pid
        os.kill(first, signal.SIGKILL)
        assert process.decode(good).reason is None
        assert process.pid != first


def test_a_header_of_sixty_thousand_squared_harms_nobody(tmp_path, dicom, ramp, good):
    (tmp_path / "plain.dcm").write_bytes(dicom(ramp, Rows=60000, Columns=60000))
    dataset = dcmread(FOLDER / "MR_small_jp2klossless.dcm")
    stream = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    at = stream.index(b"\xff\x51")  # the codestream's own size, SIZ (ISO 15444-1 A.5.1)
    for place in (6, 10, 22, 26):
        stream[at + place : at + place + 4] = (60000).to_bytes(4, "big")
    dataset.PixelData = encapsulate([bytes(stream)])
    dataset.Rows = dataset.Columns = 60000
    dataset.save_as(tmp_path / "jpeg2000.dcm")
    with worker() as process:
        for name in ("plain.dcm", "jpeg2000.dcm"):
            result = process.decode(str(tmp_path / name))
            assert result.reason in (Reason.DAMAGED, Reason.TOO_LARGE, Reason.DECODER_CRASHED)
        assert process.decode(good).reason is None


def test_links_pipes_and_folders_are_not_opened(tmp_path, good):
    (tmp_path / "link.dcm").symlink_to(good)
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "folder.dcm").mkdir()
    with worker() as process:
        for name in ("link.dcm", "pipe.dcm", "folder.dcm", "absent.dcm"):
            result = process.decode(str(tmp_path / name))
            assert result.reason == Reason.UNREADABLE_FILE, name


COMPRESSED = (
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "JPEGLSNearLossless_16.dcm",
)


@pytest.fixture(scope="module")
def fuzzed():
    with worker(seconds=20) as process:
        yield process


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(COMPRESSED),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_whatever_is_changed_in_compressed_files_there_is_an_answer(
    fuzzed, tmp_path, name, changes, kept
):
    content = bytearray((FOLDER / name).read_bytes())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path = tmp_path / "fuzzed.dcm"
    path.write_bytes(content[: int(len(content) * kept)])
    result = fuzzed.decode(str(path))
    assert (result.image is None) == (result.reason is not None)
