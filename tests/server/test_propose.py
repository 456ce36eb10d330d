"""Proposed studies: always valid, always with reasons, and fit for the smallest site."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.propose import (
    FEWEST,
    PLANS,
    WORTH,
    Hardware,
    Kind,
    Network,
    Proposal,
    Wish,
    Wishes,
    privacy,
    propose,
    study_name,
)
from shared.errors import StudyError
from shared.explain_noise import BEARABLE, training_noise, verdict
from shared.study import Study, load_study, parse_study


def wishes(**changes: Any) -> Wishes:
    return Wishes(**{"name": "lungs", "classes": ("clear", "opaque")} | changes)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=5, unique=True),
    kind=st.sampled_from(get_args(Kind)),
    patients=st.sampled_from([10, 23, 300, 5000, 100_000]),
    sites=st.integers(1, 10_000),
    hardware=st.sampled_from(get_args(Hardware)),
    size=st.none() | st.integers(28, 256),
)
@example(['"', "\\", "#'\x7f\x00\n\u2028\U0001f600"], "ct", 300, 2, "gpu", 31)
def test_what_is_written_is_what_was_proposed(
    tmp_path_factory: pytest.TempPathFactory,
    classes: list[str],
    kind: Kind,
    patients: int,
    sites: int,
    hardware: Hardware,
    size: int | None,
) -> None:
    proposal = propose(
        wishes(
            classes=tuple(classes), kind=kind, patients=patients, sites=sites,
            hardware=hardware, size=size, privacy="none",
        )
    )  # fmt: skip
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(proposal.to_toml(), encoding="utf-8")
    assert load_study(path) == proposal.study
    assert proposal.study.task.classes == tuple(classes)
    assert proposal.study.federation.sites == sites
    assert size in (None, proposal.study.input.size)


@pytest.fixture(scope="module")
def small() -> Proposal:
    """Return a private study whose smallest site has 200 patients, 170 of them in training."""
    return propose(wishes(patients=200, privacy="medium"))


def test_every_key_stands_below_a_reason(small: Proposal) -> None:
    lines = small.to_toml().splitlines()
    reasoned = ""
    for line in lines:
        assert len(line) <= 100
        if line.startswith("#"):
            reasoned = line
        elif not line or line.startswith("["):
            reasoned = ""
        else:
            assert reasoned, line
    document = tomllib.loads("\n".join(lines))
    assert {"task", "input", "model", "training", "privacy", "federation"} <= document.keys()
    assert parse_study(document, "test") == small.study


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("patients", [20, 100_000])
def test_the_model_is_the_one_wished_for_however_much_data_there_is(
    patients: int, hardware: Hardware
) -> None:
    for wish in set(get_args(Network)) - {"auto"}:
        answers = wishes(patients=patients, hardware=hardware, model=wish, privacy="none")
        assert propose(answers).study.model.name == wish
    assert propose(wishes(patients=patients, privacy="none")).study.model.name == "cnn"


@pytest.mark.parametrize(
    ("patients", "sites", "privacy", "model"),
    [
        (180, 3, "light", "linear"),  # breast ultrasound, three hospitals
        (180, 3, "none", "cnn"),
        (1800, 3, "light", "cnn"),  # chest radiographs, three hospitals
        (180, 300, "light", "cnn"),  # the noise of many small hospitals averages out
        (500, 3, "strong", "linear"),
    ],
)
def test_few_patients_and_much_noise_get_the_linear_model(
    patients: int, sites: int, privacy: Wish, model: str
) -> None:
    proposal = propose(wishes(patients=patients, sites=sites, privacy=privacy))
    study = proposal.study
    assert study.model.name == model
    if privacy != "none":
        train = round(patients * 0.85)
        joint = ratio(study, train) / math.sqrt(sites)
        assert (joint >= BEARABLE) == (model == "linear")
        assert (f"{joint:.3f}" in proposal.to_toml()) == (model == "linear")


@given(st.none() | st.integers(28, 256), st.sampled_from(["cpu", "gpu"]))
def test_attention_always_gets_patches_that_fit(size: int | None, hardware: Hardware) -> None:
    answers = wishes(size=size, hardware=hardware, model="attention", privacy="none")
    study = propose(answers).study
    assert study.input.size % study.model.patch == 0
    assert 4 <= study.input.size // study.model.patch <= 8
    assert study.model.patch >= 7
    assert size is None or abs(study.input.size - size) <= 4


def test_a_side_that_fits_is_kept_and_one_that_does_not_is_named() -> None:
    kept = propose(wishes(size=28, model="attention", privacy="none")).study
    assert (kept.input.size, kept.model.patch) == (28, 7)
    moved = propose(wishes(size=127, model="attention", privacy="none"))
    assert moved.study.input.size == 128
    assert "the 127 asked for" in moved.to_toml()


@pytest.mark.parametrize("size", [None, 28, 64, 96, 127])
def test_a_cnn_that_is_changed_to_attention_as_the_reason_says_is_valid(size: int | None) -> None:
    proposal = propose(wishes(size=size, privacy="none"))
    said = re.search(
        r'name = "attention" and patch = (\d+)', proposal.to_toml().replace("\n# ", " ")
    )
    assert (said is None) == (size == 127)
    if said:
        changed = proposal.study.model_dump() | {
            "model": {"name": "attention", "patch": int(said[1])}
        }
        assert parse_study(changed, "test").model.name == "attention"


@pytest.mark.parametrize(("wish", "epsilon"), [("strong", 1.0), ("medium", 3.0), ("light", 8.0)])
def test_a_stronger_wish_is_a_smaller_epsilon(wish: Wish, epsilon: float) -> None:
    assert privacy(wishes(privacy=wish)).values == {"epsilon": epsilon}


def ratio(study: Study, train: int) -> float:
    return training_noise(study, train) / (study.training.sampling_rate * train)


def test_a_site_with_enough_patients_gets_bearable_noise_at_the_least_work() -> None:
    study = propose(wishes(patients=10_000, privacy="medium")).study
    assert ratio(study, 8500) < BEARABLE
    assert study.training.sampling_rate == PLANS[0][1]


def test_a_small_site_gets_the_least_noise_there_is_and_is_told(small: Proposal) -> None:
    chosen = ratio(small.study, 170)
    assert chosen >= BEARABLE
    for rounds, rate in PLANS:
        training = small.study.training.model_copy(update={"sampling_rate": rate})
        plan = small.study.federation.model_copy(update={"rounds": rounds})
        other = small.study.model_copy(update={"training": training, "federation": plan})
        assert chosen < WORTH * ratio(other, 170)
    text = small.to_toml().replace("\n# ", " ")
    assert "a larger epsilon would" in text
    assert f"{chosen:.3f}: {verdict(chosen, 'linear')}" in text


def test_no_privacy_is_written_down_as_what_it_is() -> None:
    proposal = propose(wishes(privacy="none"))
    assert not proposal.study.privacy.enabled
    assert "NO PRIVACY" in proposal.to_toml()


@pytest.mark.parametrize(
    ("kind", "window", "channels"),
    [("ct", (40.0, 400.0), 1), ("xray", "file", 1), ("colour", "full", 3)],
)
def test_the_kind_of_images_decides_window_and_colour(
    kind: Kind, window: object, channels: int
) -> None:
    found = propose(wishes(kind=kind, privacy="none")).study.input
    assert (found.window, found.channels) == (window, channels)


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 10, 100])
def test_two_thirds_of_the_sites_are_needed(sites: int) -> None:
    plan = propose(wishes(sites=sites, privacy="none")).study.federation
    assert plan.min_sites == math.ceil(sites * 2 / 3)


def test_too_few_patients_or_sites_are_refused() -> None:
    for bad in (wishes(patients=FEWEST - 1), wishes(sites=0)):
        with pytest.raises(StudyError, match="at least one site"):
            propose(bad)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"classes": ("one",)}, "task.classes"), ({"size": 12}, "input.size"),
     ({"name": "Not A Name"}, "name")],
)  # fmt: skip
def test_an_answer_out_of_range_names_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(StudyError, match=key):
        propose(wishes(**changes))


@given(st.text())
def test_any_text_becomes_a_valid_name(text: str) -> None:
    assert propose(wishes(name=study_name(text), privacy="none")).study.name == study_name(text)


def test_a_name_keeps_what_it_can(tmp_path: Path) -> None:
    assert study_name("Chest X-ray, 2026!") == "chest-x-ray-2026"
