"""The plain words of a study: every number in them is recomputed another way."""

from __future__ import annotations

import math
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from shared.explain import certainty, explain_study, parameters, study_topics
from shared.explain_noise import score_targets, site_noise, verdict
from shared.models import initial_weights
from shared.study import Study, parse_study


def make_study(**changes: Any) -> Study:
    values = {
        "name": "lungs",
        "task": {"classes": ["clear", "opaque"]},
        "input": {"size": 28},
        "training": {"sampling_rate": 0.2, "local_steps": 5},
        "federation": {"rounds": 10},
    }
    return parse_study(values | changes, "test")


def text_of(study: Study, topic: str) -> str:
    return dict(study_topics(study))[topic]


def spent(noise: float, rate: float, steps: int, delta: float) -> float:
    """Return epsilon by Google's accountant."""
    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    return PLDAccountant().compose(event).get_epsilon(delta)


def test_the_noise_shown_keeps_the_budget_and_not_much_more() -> None:
    study = make_study(privacy={"epsilon": 3.0, "spare_rounds": 2})
    noise = site_noise(study, 300)
    assert noise.delta == 1e-5
    assert noise.lot == pytest.approx(60)
    assert noise.noise_to_signal == pytest.approx(noise.noise_multiplier / 60)
    steps = 5 * (10 + 2)
    assert spent(noise.noise_multiplier, 0.2, steps, 1e-5) <= 3.0
    assert spent(noise.noise_multiplier * 0.98, 0.2, steps, 1e-5) > 3.0


def test_epsilon_under_replacement_is_shown_beside_the_other() -> None:
    study = make_study(privacy={"epsilon": 3.0})
    noise = site_noise(study, 300)
    event = PoissonSampledDpEvent(0.2, GaussianDpEvent(noise.noise_multiplier))
    replaced = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    replaced.compose(SelfComposedDpEvent(event, 5 * (10 + 1)))
    assert noise.replacement_epsilon == pytest.approx(replaced.get_epsilon(1e-5), rel=0.01)
    assert noise.replacement_epsilon > noise.epsilon
    shown = text_of(study, "What epsilon means").rpartition(" epsilon is ")[2]
    assert noise.replacement_epsilon <= float(shown[:-1]) <= noise.replacement_epsilon + 0.01


def test_a_held_out_patient_who_is_replaced_moves_one_count_to_another() -> None:
    # So few steps of training that the scores cost more: 101 evaluations, each by root 2.
    study = make_study(
        training={"sampling_rate": 0.0001, "local_steps": 1}, federation={"rounds": 99}
    )
    noise = site_noise(study, 100_000)
    shift = math.sqrt(2 * 101) / noise.count_noise

    def delta(epsilon: float) -> float:
        near, far = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
        return float(norm.cdf(near) - math.exp(epsilon) * norm.cdf(far))

    found = noise.replacement_epsilon
    assert delta(found) <= noise.delta <= delta(0.98 * found)


def test_large_sites_get_a_smaller_delta_unless_the_study_fixes_it() -> None:
    everybody = {"sampling_rate": 1.0}
    assert site_noise(make_study(training=everybody), 100_000).delta == pytest.approx(1e-6)
    fixed = make_study(training=everybody, privacy={"delta": 1e-4})
    assert site_noise(fixed, 100_000).delta == 1e-4


def test_the_noise_on_counts_covers_all_evaluations_and_all_targets() -> None:
    everybody = {"sampling_rate": 1.0}
    two = site_noise(make_study(training=everybody), 300).count_noise
    # 10 rounds, 1 spare, 1 closing: 12 Gaussian releases are one of noise / sqrt(12), whose
    # delta has a closed form (Balle and Wang 2018, theorem 8).
    s = two / math.sqrt(12)
    delta = norm.cdf(0.5 / s - 8.0 * s) - math.exp(8.0) * norm.cdf(-0.5 / s - 8.0 * s)
    assert delta <= 1e-5
    assert delta == pytest.approx(1e-5, rel=0.1)
    classes = {"classes": ["a", "b", "c"]}
    three = site_noise(make_study(training=everybody, task=classes), 300).count_noise
    assert three == pytest.approx(two * math.sqrt(3))


def test_a_small_site_mostly_contributes_noise_and_a_large_one_learns() -> None:
    study = make_study(privacy={"epsilon": 3.0})
    assert site_noise(study, 100).verdict == "will mostly contribute noise"
    assert site_noise(study, 3000).verdict.startswith("learns well")


@given(st.floats(0, 10), st.floats(0, 10))
def test_more_noise_never_has_a_better_verdict(one: float, other: float) -> None:
    order = ["learns well", "bearable", "noisy", "will mostly contribute noise"]
    less, more = sorted((one, other))
    rank = [next(i for i, word in enumerate(order) if verdict(r).startswith(word))
            for r in (less, more)]  # fmt: skip
    assert rank == sorted(rank)


@given(st.floats(0, 12), st.floats(0, 0.01))
def test_certainty_is_the_best_test_of_randomised_response(epsilon: float, delta: float) -> None:
    # The mechanism that gives away exactly (epsilon, delta): with chance delta the truth is told,
    # else randomised response; the best guess is right as often as stated.
    told = delta + (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    assert certainty(epsilon, delta) == pytest.approx(told, abs=1e-12)
    assert 0.5 <= certainty(epsilon, delta) <= 1


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [(1.0, "73.2 %"), (3.0, "95.3 %"), (8.0, "99.97 %"), (50.0, "practically 100 %")],
)
def test_the_certainty_shown_is_never_rounded_down(epsilon: float, shown: str) -> None:
    text = text_of(make_study(privacy={"epsilon": epsilon}), "What epsilon means")
    assert f"at most {shown} of the time" in text
    if "practically" not in shown:
        assert float(shown[:-2]) >= 100 * certainty(epsilon, 1e-5)


def test_the_number_of_parameters_is_the_models() -> None:
    study = make_study(model={"name": "cnn", "widths": [8, 16], "hidden": 4})
    assert parameters(study) == sum(array.size for array in initial_weights(study).values())
    assert f"{parameters(study):,} parameters" in text_of(study, "Model")
    assert "attention" in text_of(make_study(model={"name": "attention", "patch": 7}), "Model")


@pytest.mark.parametrize(("classes", "counts"), [(2, 1 * 2 * 16), (5, 5 * 2 * 16)])
def test_it_says_how_many_counts_leave(classes: int, counts: int) -> None:
    study = make_study(task={"classes": [f"c{n}" for n in range(classes)]})
    assert f"as {counts} counts" in text_of(study, "What leaves a hospital")
    assert score_targets(study) == counts // 32


def test_it_says_when_scores_leave() -> None:
    usual = text_of(make_study(), "What leaves a hospital")
    rounds, _, after = usual.partition("After the last round")
    assert "how many held-out patients got which score" in rounds
    assert "evaluated once more" in after
    late = text_of(make_study(evaluation={"when": "closing"}), "What leaves a hospital")
    rounds, _, after = late.partition("After the last round")
    assert "score" not in rounds
    assert "evaluated, once: how many held-out patients got which score" in after


def test_it_says_what_is_planned() -> None:
    study = make_study(
        federation={"rounds": 7, "sites": 4, "min_sites": 3, "round_deadline": 90},
        data={"held_out": 0.3},
        privacy={"images_per_patient": 6, "spare_rounds": 1, "clip": 2.5},
    )
    course = text_of(study, "Course")
    for words in (
        "7 rounds",
        "5 training steps",
        "20 %",
        "4 hospitals",
        "at least 3",
        "90 seconds",
    ):
        assert words in course
    assert "30 %" in text_of(study, "Data")
    for words in ("(2.5)", "at most 6", "40 steps", "1 spare round "):
        assert words in text_of(study, "How it is done")


def test_it_says_who_splits_the_patients_and_what_a_label_belongs_to() -> None:
    assert "a secret key of each hospital" in text_of(make_study(), "Data")
    assert "whose labels differ is set aside" in text_of(make_study(), "Data")
    shared = text_of(make_study(data={"split_key": "00112233aabbccdd"}), "Data")
    assert "share by hand (fingerprint 00112233aabbccdd)" in shared


def test_it_says_which_images_are_read() -> None:
    assert text_of(make_study(), "Images").startswith("plain DICOM images of any modality")
    some = make_study(input={"size": 28, "modalities": ["CR", "DX"]})
    assert "plain DICOM images of CR and DX, brought to 28" in text_of(some, "Images")


def test_without_privacy_it_warns_and_promises_nothing() -> None:
    study = make_study(privacy={"enabled": False, "epsilon": 9.0})
    lines = explain_study(study)
    assert any(line.startswith("Privacy: NONE") and "rebuild images" in line for line in lines)
    assert not [line for line in lines if "noised change" in line]
    (promise,) = (line for line in lines if "epsilon" in line)
    assert promise.startswith("Evaluation: ")
    assert "held-out patients" in promise
    assert "epsilon 9 " in promise


def test_every_topic_is_one_entry_of_its_own() -> None:
    study = make_study()
    assert explain_study(study) == [f"{topic}: {text}" for topic, text in study_topics(study)]
    assert len(dict(study_topics(study))) == len(study_topics(study))


def test_the_linear_model_bears_three_times_the_noise() -> None:
    assert verdict(0.1) == "will mostly contribute noise" != verdict(0.1, "linear")
    assert verdict(0.31, "linear") == verdict(0.31)
    study = make_study(model={"name": "linear"})
    assert site_noise(study, 300).verdict == verdict(site_noise(study, 300).noise_to_signal / 3)
