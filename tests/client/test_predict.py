"""Predictions for a hospital's own patients: the right model, the right names, kept at the site."""

from __future__ import annotations

import csv
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from split_kit import KEY, fix_split
from typer.testing import CliRunner

from client.approvals import Approvals
from client.audit import AuditLog
from client.cli import app
from client.data.cohort import load_cohort
from client.data.split import is_held_out
from client.hospital import Hospital, open_hospital
from client.personal import personal_weights
from client.rounds import handle
from client.vault import Vault
from server.release import ModelCard, sha256, weights_file, write_release
from shared.errors import ConsiliumError, DataError, SiteError
from shared.models import build_model, initial_weights, set_weights
from shared.protocol import Request
from shared.study import Study
from shared.transport import Weights
from simulations.phantoms import make_phantoms

SITE = """
name = "ward"
[server]
address = "localhost:1"
[data]
{data}
[policy]
max_epsilon_per_patient = 100
min_patients = {least}
min_patients_per_class = 2
[compute]
device = "cpu"
"""


class Home:
    """A site on disk."""

    def __init__(self, path: Path, study: Study, data: str) -> None:
        self.path, self.study, self._data = path, study, data

    def close(self) -> None:
        """Make the site and let its study close, which leaves it a model of its own."""
        fix_split(self.path)
        self.configure()
        Approvals(self.hospital.site).approve_study(self.study, "Dr. A", 60)
        closing = Request(
            task="evaluate", run="run-1", round=self.study.federation.rounds + 1, counted=0,
            study=self.study.canonical(), study_digest=self.study.digest,
        )  # fmt: skip
        reply, _ = handle(self.hospital, closing, initial_weights(self.study))
        assert reply.outcome == "evaluated", reply

    def copy(self, path: Path) -> Home:
        shutil.copytree(self.path, path)
        return Home(path, self.study, self._data)

    def configure(self, least: int = 5) -> None:
        (self.path / "site.toml").write_text(SITE.format(data=self._data, least=least))

    @property
    def hospital(self) -> Hospital:
        return open_hospital(self.path)

    def run(self, *words: str) -> Any:
        """Predict, and return the outcome of the command."""
        out = str(self.path / "predictions.csv")
        study = ("--study", self.study.digest[:10], "--out", out)
        return CliRunner().invoke(app, ["predict", "--home", str(self.path), *study, *words])

    def predict(self, *words: str) -> dict[str, dict[str, str]]:
        """Predict, and return the file's rows by patient."""
        result = self.run(*words)
        assert result.exit_code == 0, (result.output, result.exception)
        with (self.path / "predictions.csv").open(newline="") as file:
            rows = {row["patient"]: row for row in csv.DictReader(file)}
        assert f"{len(rows)} patients" in result.stdout
        return rows

    def refused(self, *words: str) -> ConsiliumError:
        error = self.run(*words).exception
        assert isinstance(error, ConsiliumError), error
        assert not (self.path / "predictions.csv").exists()
        return error


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """A hospital of 30 patients, some with broken files, and a folder of 8 others."""
    folder = tmp_path_factory.mktemp("phantoms")
    return make_phantoms(folder, sites=1, patients=30, test_patients=8, seed=3)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, folders: list[Any]) -> Home:
    study = Study.model_validate(
        {
            "name": "chest",
            "task": {"classes": ("normal", "opacity")},
            "input": {"size": 28},
            "model": {"name": "cnn", "widths": (4, 4), "hidden": 0},
            "training": {"local_steps": 2, "personal_rounds": 1, "sampling_rate": 0.5},
            "privacy": {"delta": 1e-5},
            "federation": {"rounds": 2},
        }
    )
    source = folders[0]
    data = f'images = "{source.images}"\nlabels = "{source.labels}"'
    home = Home(tmp_path_factory.mktemp("site") / "home", study, data)
    home.close()
    return home


@pytest.fixture
def home(closed: Home, tmp_path: Path) -> Home:
    """A site whose study has closed, to be changed at will."""
    return closed.copy(tmp_path / "home")


def by_hand(home: Home, weights: Weights) -> dict[str, tuple[int, list[float]]]:
    """Return each patient's images and probabilities, computed one image after the other."""
    cohort, model = load_cohort(home.hospital.site, home.study), build_model(home.study)
    set_weights(model, weights)
    expected = {}
    for side in (cohort.train, cohort.held_out):
        for at, pseudonym in enumerate(side.patients):
            own = side.images[side.image_patient == at]
            with torch.no_grad():
                each = [torch.softmax(model.eval()(image[None]), dim=1)[0] for image in own]
            expected[pseudonym] = len(own), torch.stack(each).mean(dim=0).tolist()
    return expected


def agree(home: Home, rows: dict[str, dict[str, str]], weights: Weights) -> bool:
    """Whether the rows are those of the weights; names are matched through their pseudonyms."""
    found = {
        home.hospital.vault.pseudonym(patient): (
            int(row["images"]),
            pytest.approx([float(row["p_normal"]), float(row["p_opacity"])], abs=2e-6),
        )
        for patient, row in rows.items()
    }
    return by_hand(home, weights) == found


def test_every_patient_gets_the_own_models_probabilities_under_the_tables_id(home: Home) -> None:
    rows = home.predict()
    assert agree(home, rows, personal_weights(home.hospital, home.study))
    for patient, row in rows.items():
        held_out = is_held_out(KEY, patient, home.study.data.held_out)
        assert row["part"] == ("held-out" if held_out else "train")
    assert {row["part"] for row in rows.values()} == {"train", "held-out"}
    assert len({row["p_opacity"] for row in rows.values()}) > 10


def test_the_file_is_the_owners_alone_and_the_command_says_what_it_is(home: Home) -> None:
    result = home.run()
    assert stat.S_IMODE((home.path / "predictions.csv").stat().st_mode) == 0o600
    assert "not a medical device" in result.stderr
    assert "own model" in result.stdout


def test_the_audit_log_says_so_without_a_name(home: Home) -> None:
    rows = home.predict()
    line = AuditLog(home.path / "audit.jsonl", Vault.open(home.path / "vault.key")).lines()[-1]
    said = (line.event, line.study, line.patients)
    assert said == ("predictions-made", home.study.digest, len(rows))
    text = (home.path / "audit.jsonl").read_text()
    assert not any(patient in text for patient in rows)


def test_who_opted_out_is_left_out(home: Home) -> None:
    first, *others = home.predict()
    with home.hospital.ledger() as ledger:
        ledger.opt_out(home.hospital.vault.pseudonym(first))
    assert list(home.predict()) == others
    assert "they opted out: 1" in home.run().stderr


def test_a_cohort_that_shrank_below_the_policy_can_still_be_predicted_for(home: Home) -> None:
    home.configure(least=1000)
    assert len(home.predict()) > 20


def test_images_of_a_folder_are_predicted_for_under_the_ids_they_name(
    home: Home, folders: list[Any], tmp_path: Path
) -> None:
    shutil.copytree(folders[1].images, tmp_path / "new")
    (tmp_path / "new" / "notes.txt").write_text("not an image")
    files = [path for path in (tmp_path / "new").rglob("*") if path.suffix != ".txt"]
    named: dict[str, int] = {}
    for path in files:
        patient = str(pydicom.dcmread(path, stop_before_pixels=True).PatientID)
        named[patient] = named.get(patient, 0) + 1
    (tmp_path / "new" / "cut.dcm").write_bytes(files[0].read_bytes()[:-500])
    rows = home.predict("--images", str(tmp_path / "new"))
    assert {patient: int(row["images"]) for patient, row in rows.items()} == named
    assert {row["part"] for row in rows.values()} == {"folder"}
    assert "files set aside: 1;" in home.run("--images", str(tmp_path / "new")).stderr


def test_a_folder_and_the_cohort_give_a_patient_the_same(home: Home, folders: list[Any]) -> None:
    own, folder = home.predict(), home.predict("--images", str(folders[0].images))
    whole = [p for p in own if own[p]["images"] == folder[p]["images"]]
    assert len(whole) > 15
    for patient in whole:
        assert float(own[patient]["p_opacity"]) == pytest.approx(
            float(folder[patient]["p_opacity"]), abs=2e-6
        )


def test_a_folder_without_images_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = home.refused("--images", str(tmp_path / "empty"))
    assert isinstance(error, DataError)
    assert "no patient" in str(error)


def test_without_an_own_model_it_says_how_one_comes_about(home: Home) -> None:
    shutil.rmtree(home.path / "local")
    assert "no finished model" in str(home.refused())


def release(home: Home, folder: Path, **changes: Any) -> tuple[Path, Weights]:
    """Write a release as the coordinator's server does; its weights are others than the own."""
    weights = {name: a + 0.1 for name, a in personal_weights(home.hospital, home.study).items()}
    content = weights_file(weights, home.study)
    card = ModelCard(
        run="r", created="2026-01-01T00:00:00Z", code_version="1", weights="last", rounds=2,
        study=home.study, study_digest=home.study.digest, weights_sha256=sha256(content),
        sites={}, closing={},
    )  # fmt: skip
    folder.mkdir()
    write_release(folder, content, card.model_copy(update=changes))
    return folder / "model.safetensors", weights


def test_the_released_model_is_used_where_it_is_named(home: Home, tmp_path: Path) -> None:
    path, weights = release(home, tmp_path / "release")
    rows = home.predict("--model", str(path))
    assert agree(home, rows, weights)
    assert not agree(home, rows, personal_weights(home.hospital, home.study))
    shutil.rmtree(home.path / "local")
    assert home.predict("--model", str(path)) == rows, "a site without an own model can use it"


def test_a_release_that_was_changed_or_is_another_studys_is_refused(
    home: Home, tmp_path: Path
) -> None:
    path, _ = release(home, tmp_path / "changed")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    error = home.refused("--model", str(path))
    assert isinstance(error, SiteError)
    assert "not that of its card" in str(error)
    other, _ = release(home, tmp_path / "other", study_digest="f" * 64)
    assert "of study ffffffffffff" in str(home.refused("--model", str(other)))
    (tmp_path / "other" / "model-card.json").unlink()
    assert "model-card.json" in str(home.refused("--model", str(other)))


def test_rows_of_a_table_are_predicted_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["patient;label;age"]
    for number in range(40):
        ill = number % 2
        age = "" if number % 10 == 9 else f"{rng.normal(50 + 20 * ill, 5):.0f}"
        lines.append(f"P{number:02};{'ill' if ill else 'healthy'};{age}")
    (tmp_path / "patients.csv").write_text("\n".join(lines))
    study = Study.model_validate(
        {
            "name": "ages",
            "task": {"classes": ("healthy", "ill")},
            "table": {"columns": [{"name": "age", "low": 18, "high": 100}], "missing": "drop"},
            "model": {"name": "table"},
            "training": {"local_steps": 2, "personal_rounds": 1, "sampling_rate": 0.5},
            "privacy": {"delta": 1e-5},
            "federation": {"rounds": 2},
        }
    )
    data = f'table = "{tmp_path / "patients.csv"}"'
    home = Home(tmp_path / "home", study, data)
    home.close()
    rows = home.predict()
    incomplete = {f"P{number:02}" for number in (9, 19, 29, 39)}
    dropped = {p for p in incomplete if not is_held_out(KEY, p, study.data.held_out)}
    assert rows.keys() == {f"P{number:02}" for number in range(40)} - dropped
    sums = [float(row["p_healthy"]) + float(row["p_ill"]) for row in rows.values()]
    assert sums == pytest.approx([1.0] * len(rows), abs=3e-6)
    assert "of a table" in str(home.run("--images", str(tmp_path)).exception)
