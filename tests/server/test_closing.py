"""The closing evaluation's extras: models fine-tuned at the sites, and groups of patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from server.release import read_card
from server.report import write_report
from shared.metrics import score_histogram, to_record
from shared.subgroups import subgroup_keys

SEX = ("F", "M", "other")


def patients(node: int, count: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, scores on a grid that bins keep apart, and sexes; of women half are told."""
    rng = np.random.default_rng(node)
    labels, sexes = rng.integers(0, 2, count), rng.integers(0, 2, count)
    told = np.where((sexes == 0) & (rng.random(count) < 0.5), rng.integers(0, 2, count), labels)
    scores = (np.clip(told * 6 + rng.integers(0, 10, count), 0, 15) + 0.5) / 16
    return labels, scores, sexes


def histogram(study, labels, scores, noise=0.0):
    counts = score_histogram(np.stack([1 - scores, scores], axis=1), labels, study)
    return to_record(counts, noise)


@pytest.fixture
def closing(world):
    """A world whose sites send subgroups by sex, and personal models that are always right."""

    class Site(world.plain_site):
        def reply(self, request, **changes):
            if request.task == "evaluate":
                labels, scores, sexes = patients(self.patients)
                cells = {
                    f"sex:{name}": histogram(world.study, labels[sexes == n], scores[sexes == n])
                    for n, name in enumerate(SEX)
                }
                right = (labels * 14 + 1.5) / 16
                changes |= {
                    "evaluation": histogram(world.study, labels, scores),
                    "subgroups": cells,
                    "personal": histogram(world.study, labels, right),
                }
            return super().reply(request, **changes)

    for node, site in world.sites.items():
        world.sites[node] = Site(site.goal, patients=site.patients)
    world.change_study(
        training={"personal_rounds": 2}, privacy={"subgroups": ("sex",), "enabled": True}
    )
    return world


def pooled(world, sex: int | None = None) -> float:
    """Return the AUC of all sites' raw scores by scikit-learn."""
    labels, scores, sexes = (
        np.concatenate(parts)
        for parts in zip(*(patients(s.patients) for s in world.sites.values()), strict=True)
    )
    chosen = slice(None) if sex is None else sexes == sex
    return float(roc_auc_score(labels[chosen], scores[chosen]))


def test_each_subgroups_auc_is_that_of_its_pooled_patients(closing) -> None:
    closing.run()
    *rounds, line = closing.lines("metrics.jsonl")
    assert all("subgroups" not in r and "personal_auc" not in r for r in rounds)
    assert tuple(line["subgroups"]) == subgroup_keys(closing.study)
    assert line["auc"] == pytest.approx(pooled(closing), abs=1e-9)
    for number, name in enumerate(SEX[:2]):
        group = line["subgroups"][f"sex:{name}"]
        assert group["auc"] == pytest.approx(pooled(closing, number), abs=1e-9)
        assert group["auc_low"] < group["auc"] < group["auc_high"]
    women, men = (line["subgroups"][f"sex:{name}"] for name in SEX[:2])
    assert women["auc_high"] < men["auc_low"]
    total = women["positives"] + men["positives"]
    assert total == line["positives"]
    # Nobody is in the third, and an AUC of nobody is not known.
    assert line["subgroups"]["sex:other"]["auc"] is None


def test_personal_models_are_reported_beside_the_global_one_and_by_site(closing) -> None:
    closing.run()
    line = closing.lines("metrics.jsonl")[-1]
    assert line["personal_auc"] == 1.0
    assert line["auc"] < 0.95
    assert {s["personal_auc"] for s in line["sites"].values()} == {1.0}
    assert all(s["personal_auc_low"] < 1.0 for s in line["sites"].values())


def test_a_study_evaluated_at_its_closing_has_figures_of_the_released_model_only(world) -> None:
    class Silent(world.plain_site):
        def reply(self, request, **changes):
            silent = {"evaluation": None} if request.task == "train" else {}
            return super().reply(request, **(silent | changes))

    world.change_study(evaluation={"when": "closing"})
    world.sites = {n: Silent(1.0, patients=40) for n in world.sites}
    world.network.sites = world.sites
    world.run()
    *rounds, closing = world.lines("metrics.jsonl")
    assert [line["auc"] for line in rounds] == [None] * 3
    assert closing["auc"] > 0.5
    assert read_card(world.run_dir).closing["auc"] == closing["auc"]
    write_report(world.run_dir, world.run_dir / "report.html")
    assert "closing evaluation" in (world.run_dir / "report.html").read_text()


def test_the_card_carries_both(closing) -> None:
    closing.run()
    line, card = closing.lines("metrics.jsonl")[-1], read_card(closing.run_dir)
    assert card.closing["personal_auc"] == 1.0
    assert card.subgroups == line["subgroups"]


def test_a_subgroup_lost_in_noise_is_not_known(closing) -> None:
    class Noisy(type(closing.sites[1])):
        def reply(self, request, **changes):
            reply = super().reply(request, **changes)
            noisy = {k: h.model_copy(update={"noise": 40.0}) for k, h in reply.subgroups.items()}
            return reply.model_copy(update={"subgroups": noisy})

    closing.sites[1] = Noisy(1.0, patients=60)
    closing.run()
    groups = closing.lines("metrics.jsonl")[-1]["subgroups"]
    assert {key: group["auc"] for key, group in groups.items()} == dict.fromkeys(groups)
    assert closing.lines("metrics.jsonl")[-1]["auc"] is not None


def test_sites_may_keep_their_subgroups_to_themselves(closing) -> None:
    closing.sites[1] = closing.plain_site(1.0, patients=60)
    closing.run()
    line = closing.lines("metrics.jsonl")[-1]
    both = line["subgroups"]["sex:F"]
    men = sum(np.sum(patients(n)[2] == 1) for n in (30, 10))
    group = line["subgroups"]["sex:M"]
    assert group["positives"] + group["negatives"] == pytest.approx(men)
    assert both["auc"] is not None
    assert "personal_auc" not in line["sites"]["Ashford"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: {"subgroups": {"sex:F": r.evaluation}}, "subgroups are not the study's"),
        (
            lambda r: {"subgroups": r.subgroups | {"age:80+": r.evaluation}},
            "subgroups are not the study's",
        ),
        (
            lambda r: {"subgroups": dict.fromkeys(r.subgroups, to_record(np.zeros((1, 2, 8)), 0))},
            "study's bins",
        ),
        (lambda r: {"personal": to_record(np.zeros((3, 2, 16)), 0)}, "study's classes"),
        (lambda r: {"personal": to_record(np.zeros((1, 2, 16)), 1e300)}, "more patients"),
    ],
)
def test_odd_extras_are_refused(closing, change, reason) -> None:
    class Odd(type(closing.sites[1])):
        def reply(self, request, **changes):
            reply = super().reply(request, **changes)
            odd = change(reply) if request.task == "evaluate" else {}
            return reply.model_copy(update=odd)

    closing.sites[3] = Odd(4.0, patients=10)
    closing.run()
    (event,) = closing.events("update-rejected")
    assert reason in event["reason"]


def test_a_personal_model_nobody_planned_is_refused(closing) -> None:
    closing.change_study(training={"personal_rounds": 0})
    closing.run()
    assert {e["site"] for e in closing.events("update-rejected")} == set(closing.names.values())
    assert "does not have" in closing.events("update-rejected")[0]["reason"]
