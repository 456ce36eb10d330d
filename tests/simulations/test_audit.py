"""The audit of the product's own code: sound training passes, and every planted fault is seen."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from client.privacy.sampler import draw_lot, poisson_lot
from client.privacy.stream import OsStream
from shared.errors import StudyError
from simulations.audit.attack import attack, product_round
from simulations.audit.canaries import (
    SEARCHED,
    AuditModel,
    AuditPlan,
    canary_images,
    mislabelled,
    ordinary_patients,
    with_canaries,
)
from simulations.audit.lots import LotRecorder, check_lots, deviations, judge_lots
from simulations.audit.replay import check_replay, hospital_streams
from simulations.audit.report import AuditReport, audit
from simulations.audit.scores import log_likelihood_ratio, probe
from simulations.audit_cli import app
from simulations.seeded import SeededStream

_spec = importlib.util.spec_from_file_location(
    "audit_faults", Path(__file__).parents[2] / "benchmarks" / "audit_faults.py"
)
faults = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)

SMALL = AuditPlan(canaries=512, rounds=8, images=1, ordinary=24)


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_products_training_stays_below_its_claim(epsilon: float) -> None:
    found = attack(replace(SMALL, epsilon=epsilon), SeededStream(0, "honest"))
    assert found.bound.epsilon <= epsilon
    assert 200 < found.included < 312
    if epsilon == 8:
        assert found.bound.epsilon > 1  # the attack sees a good part of what there is to see


@pytest.mark.parametrize("steps", [1, 3])
def test_scores_separate_as_the_noise_allows(steps: int) -> None:
    # Everybody in every lot: the sum of 6 rounds shows each canary 6 steps times against noise of
    # std sigma sqrt(6 steps), so scores lie sqrt(6 steps) / sigma standard deviations apart.
    plan = replace(SMALL, sampling_rate=1.0, rounds=6, steps=steps)
    found = attack(plan, SeededStream(1, "separation"))
    there, away = found.scores[found.coins], found.scores[~found.coins]
    expected = math.sqrt(6 * steps) / found.noise_multiplier
    assert (there.mean() - away.mean()) / away.std() == pytest.approx(expected, rel=0.2)


FAULTY_PLANS = {
    "noise off": replace(SMALL, epsilon=1.0),
    "clipping off": replace(SMALL, epsilon=1.0),
    "noise for one round": replace(SMALL, epsilon=1.0, sampling_rate=1.0, rounds=48),
    "image as the unit": replace(SMALL, epsilon=1.0, images=8),
}


@pytest.mark.parametrize("fault", FAULTY_PLANS)
def test_a_planted_fault_is_flagged_at_claim_one(fault: str) -> None:
    plan = FAULTY_PLANS[fault]
    found = attack(plan, SeededStream(2, fault), faults.TRAINERS[fault])
    assert found.bound.epsilon > plan.epsilon
    # The same plan without the fault is not flagged.
    assert attack(plan, SeededStream(2, fault)).bound.epsilon <= plan.epsilon


def test_a_canarys_update_lies_where_the_probe_looks() -> None:
    plan = replace(SMALL, sampling_rate=1.0, ordinary=1)
    study, model = plan.study(), AuditModel(plan.size)
    images = canary_images(3, plan.size)
    labels = mislabelled(model, images)
    looked_for = probe(model, images, labels, 1.0)
    patients = with_canaries(ordinary_patients(plan), images[:1], labels[:1], 1)
    before = model.get_parameter(SEARCHED).detach().flatten().clone()
    product_round(model, patients, study, 1e-6, 1, SeededStream(0))
    moved = before - model.get_parameter(SEARCHED).detach().flatten()
    seen = looked_for.direction @ (moved / 0.1 * len(patients))
    assert 0.9 < looked_for.strength[0] <= 1
    # The ordinary patient overlaps a little with every canary's direction.
    assert seen[0] == pytest.approx(float(looked_for.strength[0]), abs=0.1)
    assert seen[1:].abs().max() < 0.1


def test_canaries_are_orthogonal() -> None:
    flat = canary_images(1024, 32).flatten(1)
    assert torch.equal(flat @ flat.T, 1024 * torch.eye(1024))


def test_the_score_is_the_ratio_of_the_two_densities() -> None:
    seen, noise, rate, steps = torch.tensor([-1.0, 0.3, 2.5]), 0.8, 0.3, 3
    strength = torch.tensor([1.0, 0.7, 0.9])
    std = noise * math.sqrt(steps)
    for x, s, score in zip(
        seen, strength, log_likelihood_ratio(seen, strength, noise, rate, steps), strict=True
    ):
        with_it = sum(
            stats.binom.pmf(k, steps, rate) * stats.norm.pdf(float(x), k * float(s), std)
            for k in range(steps + 1)
        )
        expected = math.log(with_it / stats.norm.pdf(float(x), 0, std))
        assert float(score) == pytest.approx(expected, abs=1e-6)


def test_the_products_lots_pass() -> None:
    assert check_lots(draw_lot, OsStream()).poisson


@pytest.mark.parametrize(
    ("lots", "patients", "rate"), [(300, 20, 0.3), (48, 576, 0.5), (3, 80, 0.01), (1, 90, 0.2)]
)
def test_true_lots_deviate_no_more_often_than_stated(lots: int, patients: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    runs = [
        list(deviations(rng.random((lots, patients)) < rate, rate).values()) for _ in range(500)
    ]
    # At 1.96 sigma one in twenty, fewer where there are few coins to count: more than 46 of 500
    # come by chance once in 30 000 times.
    alarms = (np.abs(runs) > 1.96).sum(axis=0)
    assert alarms.max() <= 46
    if lots == 48:
        assert alarms.min() >= 5  # and they are not idle


def test_lots_of_everybody_pass_and_a_patient_left_out_does_not() -> None:
    everybody = np.ones((10, 50), dtype=bool)
    assert judge_lots(everybody, 1.0).poisson
    everybody[3, 7] = False
    assert not judge_lots(everybody, 1.0).poisson


def test_the_recorder_notes_the_lots_that_were_drawn_and_changes_nothing() -> None:
    plan = replace(SMALL, canaries=32, steps=1)
    patients, study = ordinary_patients(plan), plan.study()
    recorder, trained = LotRecorder(patients), []
    for given in (patients, recorder.patients):
        model = AuditModel(plan.size)
        for number in (1, 2):
            product_round(model, given, study, 1.0, number, SeededStream(number))
        trained.append(model.get_parameter(SEARCHED))
    assert torch.equal(*trained)
    expected = np.zeros((2, plan.ordinary), dtype=bool)
    for row, number in zip(expected, (1, 2), strict=True):
        row[poisson_lot(SeededStream(number), plan.ordinary, 0.5).numpy()] = True
    assert np.array_equal(recorder.table(), expected)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("shuffled epochs inside training", "lots of training are not Poisson"),
        ("seeded stream from make_stream", "opened alike drew the same"),
    ],
)
def test_a_fault_inside_what_the_audit_calls_is_flagged(fault: str, says: str) -> None:
    plan = replace(SMALL, epsilon=1.0, rounds=24)
    with faults.planted(fault):
        assert says in "; ".join(audit(plan, SeededStream(6)).findings)
    assert audit(plan, SeededStream(6)).findings == []


def test_steps_that_are_not_accounted_for_are_flagged() -> None:
    def twice(*given: object) -> None:
        product_round(*given)
        product_round(*given)

    plan = replace(SMALL, canaries=64, rounds=2)
    found = attack(plan, SeededStream(7), twice)
    sound = check_lots(draw_lot, SeededStream(7)), check_replay(OsStream)
    report = AuditReport(plan, found, sound[0], judge_lots(found.lots, 0.5), sound[1])
    assert report.findings == ["training drew 4 lots where 2 are accounted for"]


@pytest.mark.parametrize("fault", faults.SAMPLERS)
def test_a_sampler_that_is_not_poisson_is_flagged(fault: str) -> None:
    assert not check_lots(faults.SAMPLERS[fault](), SeededStream(3, fault)).poisson


def test_the_products_randomness_cannot_be_replayed() -> None:
    with hospital_streams(SMALL.study()) as open_stream:
        assert check_replay(open_stream).unpredictable


@pytest.mark.parametrize("fault", faults.STREAMS)
def test_predictable_randomness_is_flagged(fault: str) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert not check_replay(faults.STREAMS[fault]).unpredictable
    if fault == "a fixed seed":  # one that does not itself draw from the global generators
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]


def test_the_report_names_what_is_wrong() -> None:
    plan = replace(SMALL, epsilon=1.0, canaries=128, rounds=2)
    attacked = attack(plan, SeededStream(4), faults.noise_off)
    report = AuditReport(
        plan,
        attacked,
        check_lots(faults.lots_of_equal_size, SeededStream(4)),
        judge_lots(attacked.lots, 0.9),
        check_replay(faults.FixedStream),
    )
    text = "\n".join(report.findings)
    assert "epsilon is above" in text
    assert "lots of the sampler are not Poisson: spread of the size of lots" in text
    assert "lots of training are not Poisson: patients per lot" in text
    assert "opened alike" in text
    assert "forked" in text
    assert json.loads(json.dumps(report.record()))["findings"] == report.findings


def test_the_command_prints_the_bound_and_can_be_repeated() -> None:
    options = ["audit", "--canaries", "64", "--rounds", "2", "--epsilon", "3", "--trials", "0"]
    runs = [CliRunner().invoke(app, [*options, "--seed", "5", "--json"]) for _ in range(2)]
    assert runs[0].exit_code == 0
    assert runs[0].output == runs[1].output
    record = json.loads(runs[0].output)
    assert record["claim"] == {"epsilon": 3.0, "delta": 1e-5}
    assert 0 <= record["epsilon_lower_bound"] <= 3 < 3.5
    assert record["largest_possible_bound"] < 4
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0
    assert "Epsilon is at least" in shown.output
    assert "The most that 64 canaries could show" in shown.output
    assert "Too few to contradict this claim" in shown.output  # they reach 2.7 of 3


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(StudyError, match="canaries must be"):
        AuditPlan(canaries=5000)
    with pytest.raises(StudyError, match="sampling_rate"):
        AuditPlan(sampling_rate=1.5).study()
