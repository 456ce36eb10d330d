"""The encrypted cache: taken only when nothing changed, and never needed."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data import images
from client.data.cohort import load_cohort
from client.data.folder import list_folder
from client.data.images import Images, Job, cache_key, read_cache, try_again, write_cache
from client.data.reasons import Reason
from client.site import Compute
from client.vault import Vault
from shared.errors import SiteError


@pytest.fixture
def ward(dicom):
    """Twelve patients whose images hold a text that must not be found on the disk."""
    rng = np.random.default_rng(0)
    images, rows = {}, ["file,patient,label"]
    for n in range(12):
        pixels = rng.integers(0, 4096, (28, 28)).astype(np.uint16)
        images[f"{n}.dcm"] = dicom(pixels, PatientID=f"SecretPatient{n}")
        rows.append(f"{n}.dcm,,{'ill' if n % 2 else 'healthy'}")
    images["5.dcm"] = b"broken"
    return images, "\n".join(rows)


def same(one, other) -> bool:
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.image_patient, b.image_patient)
        and torch.equal(a.labels, b.labels)
        and a.patients == b.patients
        for a, b in ((one.train, other.train), (one.held_out, other.held_out))
    )


def test_the_cache_gives_the_same_cohort_without_touching_the_files(make_site, study, ward):
    site = make_site(*ward)
    first = load_cohort(site, study)
    folder = site.config.data.images
    for path in folder.iterdir():  # other content, but the same name, size and time
        facts = path.stat()
        path.write_bytes(b"\0" * facts.st_size)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = load_cohort(site, study)
    assert same(first, second)
    assert second.report == first.report
    assert load_cohort(site, study, use_cache=False).patients == 0


def test_a_changed_file_is_decoded_again(make_site, study, ward, dicom):
    site = make_site(*ward)
    assert load_cohort(site, study).report.counts == {Reason.NOT_DICOM: 1}
    (site.config.data.images / "5.dcm").write_bytes(ward[0]["7.dcm"])
    assert load_cohort(site, study).report.counts == {}


def jobs_of(site) -> list[Job]:
    """The ward's jobs, in the order of its table."""
    folder = list_folder(site.config.data.images)
    return [Job(folder.locate(f"{n}.dcm"), want_patient=True) for n in range(12)]


@pytest.mark.parametrize("passing", ["unreadable-file", "too-slow", "too-large", "decoder-crashed"])
def test_a_failure_that_passes_is_no_fact_and_the_cache_forgets_it(make_site, study, ward, passing):
    site = make_site(*ward)
    first = load_cohort(site, study)
    key, vault = cache_key(jobs_of(site), study.input, site.config), Vault.open(site.vault_key)
    path = next(site.cache.iterdir())
    kept = read_cache(path, vault, key)
    failed = Images(
        np.delete(kept.pixels, [0, 2], axis=0),
        (Reason(passing), kept.reasons[1], Reason(passing), *kept.reasons[3:]),
        ("", kept.patients[1], "", *kept.patients[3:]),
        np.delete(kept.cells, [0, 2], axis=0),
    )
    write_cache(path, vault, key, failed)
    again = load_cohort(site, study)
    assert same(again, first)
    assert again.report == first.report
    back = read_cache(path, vault, key)
    assert np.array_equal(back.pixels, kept.pixels)
    assert (back.reasons, back.patients) == (kept.reasons, kept.patients)


def test_what_stays_as_it_was_is_tried_for_so_long_and_changes_nothing(make_site, study, ward):
    site = make_site(*ward)
    jobs = jobs_of(site)
    none, patients = np.zeros((0, 0), np.uint8), ("",) * 12
    pixels = np.zeros((0, 1, 28, 28), np.float32)
    broken = Images(pixels, (Reason.NOT_DICOM,) * 12, patients, none)
    assert try_again(broken, jobs, study.input, site.config) is broken
    slow = Images(pixels, (Reason.TOO_SLOW,) * 12, patients, none)
    once = try_again(slow, jobs, study.input, site.config, seconds=0)
    assert sum(reason != Reason.TOO_SLOW for reason in once.reasons) == 1
    for job in jobs:
        os.remove(job.file.path)
    gone = Images(pixels, (Reason.UNREADABLE_FILE,) * 12, patients, none)
    assert try_again(gone, jobs, study.input, site.config) is gone


def test_a_change_of_a_module_of_the_pipeline_is_another_pipeline():
    folder = Path(images.__file__).parent
    known, pending = set(), {"pixels"}
    while pending:
        known.add(name := pending.pop())
        source = (folder / f"{name}.py").read_text()
        pending |= set(re.findall(r"^from client\.data\.(\w+) import", source, re.M)) - known
    assert known - {"folder"} <= set(images.PIPELINE)


def test_labels_come_from_the_table_and_never_from_the_cache(make_site, study, ward):
    images, labels = ward
    before = load_cohort(make_site(images, labels), study)
    swapped = labels.replace("healthy", "x").replace("ill", "healthy").replace("x", "ill")
    after = load_cohort(make_site(images, swapped), study)
    assert torch.equal(after.train.images, before.train.images)
    assert torch.equal(after.train.labels, 1 - before.train.labels)


def test_nothing_readable_lies_on_the_disk(make_site, study, ward):
    site = make_site(*ward)
    cohort = load_cohort(site, study)
    kept = list(site.cache.iterdir())
    assert len(kept) == 1
    assert kept[0].stat().st_mode & 0o777 == 0o600
    content = kept[0].read_bytes()
    assert len(content) > 11 * 28 * 28 * 4
    assert b"SecretPatient" not in content
    assert b"pixels" not in content
    assert cohort.train.images[0].numpy().tobytes()[:64] not in content


@pytest.mark.parametrize("harm", ["flip", "cut", "foreign"])
def test_a_damaged_cache_is_decoded_again_and_replaced(make_site, study, ward, harm):
    site = make_site(*ward)
    first = load_cohort(site, study)
    path = next(site.cache.iterdir())
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    elif harm == "foreign":
        content = bytearray(Vault(b"k" * 32).encrypt(b"x", "y"))
    path.write_bytes(content[: 1000 if harm == "cut" else None])
    assert same(load_cohort(site, study), first)
    assert path.read_bytes() != content


def test_another_input_limit_or_rule_has_another_key(make_site, study, ward):
    site = make_site(*ward)
    keys = [cache_key([], study.input, site.config)]
    keys.append(cache_key([], study.input.model_copy(update={"size": 32}), site.config))
    compute = site.config.model_copy(update={"compute": Compute(decode_seconds=1)})
    keys.append(cache_key([], study.input, compute))
    source = site.config.data.model_copy(update={"without_patient_id": "image-is-patient"})
    keys.append(cache_key([], study.input, site.config.model_copy(update={"data": source})))
    assert len(set(keys)) == 4
    assert keys[0] == cache_key([], study.input, site.config)


def test_images_come_back_from_the_cache_as_they_went_in(tmp_path):
    vault = Vault(b"k" * 32)
    pixels = np.random.default_rng(0).random((2, 3, 28, 28), dtype=np.float32)
    cells = np.array([[0, 2], [1, 0]], dtype=np.uint8)
    kept = Images(pixels, (None, Reason.DAMAGED, None), ("Müller \udce9", "", "P"), cells)
    write_cache(tmp_path / "c", vault, "key", kept)
    back = read_cache(tmp_path / "c", vault, "key")
    assert np.array_equal(back.pixels, pixels)
    assert np.array_equal(back.cells, cells)
    assert (back.reasons, back.patients) == (kept.reasons, kept.patients)
    assert read_cache(tmp_path / "c", vault, "other key") is None
    assert read_cache(tmp_path / "absent", vault, "key") is None


@pytest.fixture
def nearly_full_disk():
    """No file may grow beyond 8 KiB, as if the disk were full in mid-write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("nearly_full_disk")
def test_a_full_disk_costs_the_cache_and_not_the_round(make_site, study, ward):
    site = make_site(*ward)
    cohort = load_cohort(site, study)
    assert len(cohort.train) + len(cohort.held_out) == 11
    assert "could not be kept" in cohort.report.notes[-1]
    assert list(site.cache.iterdir()) == []
    none = np.zeros((9, 0), dtype=np.uint8)
    large = Images(np.zeros((9, 999)), (), (), none)
    with pytest.raises(SiteError):
        write_cache(site.cache / "x", Vault(b"k" * 32), "k", large)
