"""A plan's digest and its first weights stay what they are, whatever later releases add.

The constants were computed once. One that no longer holds means that every hospital's approval of
such a plan is void: then it takes a new format, not a new constant.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from pydantic import Field
from scipy.stats import kstest

from shared.models import initial_weights
from shared.study import (
    AttentionModel,
    Column,
    Data,
    LinearModel,
    Privacy,
    Study,
    Table,
    TableModel,
    parse_study,
)
from shared.study_parts import LATER, Plan

CHEST = {"name": "chest", "task": {"classes": ["healthy", "pneumonia"]}}
HEART = {
    "name": "heart",
    "task": {"classes": ["healthy", "ill"]},
    "model": {"name": "table"},
    "table": {
        "columns": [
            {"name": "age", "low": 20, "high": 100},
            {"name": "sex", "categories": ["f", "m"]},
        ]
    },
}
PLANS: dict[str, dict[str, Any]] = {
    "all by default": CHEST,
    "small cnn": CHEST
    | {
        "description": "Zwölf Häuser",
        "input": {"size": 28, "window": "full", "modalities": ["CR", "DX"]},
        "model": {"name": "cnn", "widths": [8, 16, 16], "hidden": 0},
    },
    "ct": {
        "name": "ct",
        "task": {"classes": ["none", "small", "large"]},
        "input": {"size": 128, "window": [40, 400], "frame": 3},
        "training": {"optimiser": "adamw", "learning_rate": 0.003, "schedule": "cosine"},
        "privacy": {"epsilon": 3, "delta": 1e-6, "subgroups": ["sex", "age"]},
    },
    "attention": CHEST
    | {
        "input": {"size": 56, "channels": 3},
        "model": {"name": "attention", "patch": 8, "width": 32, "depth": 2, "heads": 2},
    },
    "linear": CHEST | {"model": {"name": "linear", "grid": 5}, "data": {"held_out": 0.3}},
    "findings": {
        "name": "findings",
        "task": {"classes": ["fluid", "air", "fracture"], "findings": True},
        "training": {
            "loss": {"name": "focal", "gamma": 1.5},
            "augment": {"views": 2, "flip": True},
        },
    },
    "remedies": CHEST
    | {
        "training": {
            "loss": {"name": "logit-adjustment"},
            "proximal": 0.01,
            "local_norms": True,
            "personal_rounds": 2,
        },
        "federation": {"optimiser": {"name": "adam", "learning_rate": 0.01}, "average": 0.9},
    },
    "robust": CHEST
    | {
        "federation": {"sites": 9, "min_sites": 7, "aggregator": "trimmed-mean", "trim": 0.2},
        "data": {"split_key": "0123456789abcdef", "held_out": 0.05},
        "privacy": {"clip": 0.001, "epsilon": 0.01, "spare_rounds": 0},
    },
    "table": HEART,
    "table with gaps": HEART
    | {
        "table": HEART["table"] | {"missing": "embedding"},
        "model": {"name": "table", "layers": [16, 8]},
        "privacy": {"enabled": False},
    },
}

DIGESTS = {
    "all by default": "3e8145385cd27c0350f5e67a97f14b0725d323ccc42b0bf34a386634c74128f3",
    "small cnn": "6d47206d7317f30d21ba177bfabcf0d5e1be0df8b7c60271baa3bbcc0293ce57",
    "ct": "cd4c53145e982050d69d5b30c70d7fb95b4b059ad60073fb8aec0b65596ee011",
    "attention": "89139727116f4debe3c48e235e23579070c930e258019022097850caad9ffde7",
    "linear": "aa1a1fd148b980b335da509e1f7ac4ea34214f115e85a7a42098330a5f25b91e",
    "findings": "3e7cb3938881c6e66c81806547e18d73ed4987f96f9967d3e30007472114c7f3",
    "remedies": "b66ffbbff5d78ab6b0f4f4a630ecd30505ff70376aaaea7d5fa981d0c057991b",
    "robust": "df15ec4f71b6bff71a52f5e566d65139f8c7423bcf68aaa72700e723aaae96bb",
    "table": "8f180a6ee219e2eed72d1c74739eba23eb4840c35fc9a9eeab35767dc2c4ae2b",
    "table with gaps": "f1b9de999f99b746f2c19bb2bebdc9af1052fb4209f21a9d6421bb117187e1a9",
}

FIRST_WEIGHTS = {
    "all by default": "42880d9097be38468f24007edd9de5ff71b70ccc97a954494f91a138d69d323b",
    "small cnn": "c3a7e274be2f8bef87ea24325be04ef2c47366a3aeaa7ef3da76b04f63543e52",
    "ct": "3fe5e07ae23a2a62fa49564c5ec7818e4341e4a64cb616127b2c2168ccc32409",
    "attention": "8b84b734c8268e680a34ca1673956dad5b346472b582fcbe734b4b2a15cf231c",
    "linear": "36478c76490ee848cc8fff171fdf07ede5975eb121bc8833efee3ef62b54cd89",
    "findings": "60d0ed21137e6a072cfeb42ded7c1d2895dfea0fbacece93f68e0c4c757f03f8",
    "remedies": "42880d9097be38468f24007edd9de5ff71b70ccc97a954494f91a138d69d323b",
    "robust": "42880d9097be38468f24007edd9de5ff71b70ccc97a954494f91a138d69d323b",
    "table": "de30f6824fa9ccf020255e4d2dad9bda52222c29f0cbb38b0d44edd2c50f2bbd",
    "table with gaps": "fcc83e0335aaa9732eec9a98517ed4633c096f09a7c7f736033920cc33580673",
}

DEFAULTS = (
    '{"data":{"held_out":0.15,"label_of":"patient","label_rule":"agree","split_key":""},'
    '"description":"","evaluation":{"form":"histogram","when":"every-round"},'
    '"federation":{"aggregator":"mean","average":0.0,"min_sites":2,"optimiser":{"beta2":0.99,'
    '"learning_rate":1.0,"momentum":0.9,"name":"none","tau":0.001},"round_deadline":3600.0,'
    '"rounds":16,"sites":3,"start_deadline":600.0,"trim":0.2},"format":2,"input":{"channels":1,'
    '"frame":"middle","kinds":["image"],"modalities":[],"size":64,"window":"file"},'
    '"model":{"hidden":32,"name":"cnn","widths":[32,32]},"name":"chest","privacy":{"clip":1.0,'
    '"delta":null,"enabled":true,"epsilon":8.0,"images_per_patient":4,"score_bins":16,'
    '"spare_rounds":1,"statistics_noise":10.0,"subgroups":[]},"table":null,'
    '"task":{"classes":["healthy","pneumonia"],"findings":false,"positive":""},'
    '"training":{"augment":{"flip":false,"intensity":0.0,"rotate":0.0,"scale":0.0,"shift":0.0,'
    '"views":1},"control":false,"learning_rate":1.0,"local_norms":false,"local_steps":6,'
    '"loss":{"beta":0.999,"gamma":2.0,"name":"cross-entropy","tau":1.0},"momentum":0.0,'
    '"optimiser":"sgd","personal_rounds":0,"proximal":0.0,"sampling_rate":0.15,'
    '"schedule":"constant","weight_decay":0.0}}'
)


def weights_digest(study: Study) -> str:
    """SHA-256 of names, shapes and little-endian float32 values, in order of the names."""
    found = hashlib.sha256()
    for name, array in sorted(initial_weights(study).items()):
        found.update(f"{name} {array.shape}\n".encode() + array.astype("<f4").tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", PLANS)
def test_the_digest_of_a_written_plan_is_what_it_was(name: str) -> None:
    study = parse_study(PLANS[name], "here")
    assert study.digest == DIGESTS[name]
    assert parse_study(json.loads(study.canonical()), "here").digest == DIGESTS[name]


@pytest.mark.parametrize("name", PLANS)
def test_the_first_weights_of_a_written_plan_are_what_they_were(name: str) -> None:
    assert weights_digest(parse_study(PLANS[name], "here")) == FIRST_WEIGHTS[name]


def test_the_defaults_are_what_they_were() -> None:
    assert parse_study(CHEST, "here").canonical() == DEFAULTS


@pytest.mark.parametrize(
    ("part", "defaults"),
    [
        (AttentionModel(), {"patch": 7, "width": 48, "depth": 1, "heads": 4, "name": "attention"}),
        (LinearModel(), {"grid": 7, "name": "linear"}),
        (TableModel(), {"layers": [32], "name": "table"}),
        (
            Table(columns=(Column(name="a", low=0, high=1),)),
            {
                "columns": [{"name": "a", "low": 0.0, "high": 1.0, "categories": []}],
                "missing": "indicator",
                "bins": 16,
            },
        ),
    ],
)
def test_the_defaults_of_other_parts_are_what_they_were(
    part: Plan, defaults: dict[str, Any]
) -> None:
    assert part.model_dump(mode="json") == defaults


class WiderPrivacy(Privacy):
    """The section of a later release, which has one setting more."""

    accountant: str = Field(default="prv", json_schema_extra=LATER)


class Reading(Plan):
    """A whole section that a later release adds."""

    readers: int = 1


class LaterStudy(Study):
    """The plan of a later release."""

    privacy: WiderPrivacy = WiderPrivacy()
    reading: Reading = Field(default=Reading(), json_schema_extra=LATER)


@pytest.mark.parametrize("name", PLANS)
def test_a_setting_a_later_release_adds_changes_no_plan_that_has_its_default(name: str) -> None:
    study = LaterStudy.model_validate(PLANS[name])
    assert study.digest == DIGESTS[name]
    written = {"accountant": "prv"} | PLANS[name].get("privacy", {})
    spelled_out = PLANS[name] | {"privacy": written, "reading": {"readers": 1}}
    assert LaterStudy.model_validate(spelled_out).digest == DIGESTS[name]
    assert parse_study(json.loads(study.canonical()), "an earlier release").digest == DIGESTS[name]


@pytest.mark.parametrize("part", [{"privacy": {"accountant": "rdp"}}, {"reading": {"readers": 2}}])
def test_another_value_of_it_makes_another_plan_with_the_same_first_weights(
    part: dict[str, Any],
) -> None:
    study = LaterStudy.model_validate(CHEST | part)
    assert study.digest != DIGESTS["all by default"]
    assert weights_digest(study) == FIRST_WEIGHTS["all by default"]
    assert LaterStudy.model_validate_json(study.canonical()) == study


def test_a_setting_of_this_release_is_written_with_its_default_too() -> None:
    written = json.loads(parse_study(CHEST, "here").canonical())
    assert written["data"].keys() == Data.model_fields.keys()
    assert written.keys() == Study.model_fields.keys()


@pytest.mark.parametrize(
    ("part", "same"),
    [
        ({"name": "another"}, True),
        ({"privacy": {"epsilon": 1}}, True),
        ({"federation": {"rounds": 3}}, True),
        ({"data": {"held_out": 0.2}}, True),
        ({"task": {"classes": ["healthy", "ill"]}}, False),
        ({"input": {"size": 28}}, False),
        ({"model": {"name": "cnn", "hidden": 0}}, False),
    ],
)
def test_first_weights_follow_from_what_defines_the_model(part: dict[str, Any], same: bool) -> None:
    found = weights_digest(parse_study(CHEST | part, "here"))
    assert (found == FIRST_WEIGHTS["all by default"]) is same


def test_first_weights_are_the_sums_of_twelve_they_are_said_to_be() -> None:
    study = parse_study(PLANS["table"], "here")
    defines = {k: json.loads(study.canonical())[k] for k in ("input", "model", "table", "task")}
    text = json.dumps(defines, sort_keys=True, separators=(",", ":"))
    seed = hashlib.sha256(text.encode()).hexdigest()
    assert seed == study.model_digest
    first = initial_weights(study)["hidden.0.weight"]
    key = hashlib.sha256(f"{seed} hidden.0.weight".encode()).digest()
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    for weight in first.ravel()[:50]:
        words = [int.from_bytes(cipher.update(bytes(4)), "little") for _ in range(12)]
        exact = (sum(words) - 6 * 2**32) / 2**32
        assert weight == np.float32(exact * (1 / math.sqrt(first.shape[1])))


def test_first_weights_are_as_good_as_gaussian() -> None:
    array = initial_weights(parse_study(PLANS["attention"], "here"))["blocks.0.mlp.1.weight"]
    values = array.ravel().astype(float) * math.sqrt(array.shape[1])
    assert abs(statistics.fmean(values)) < 4 / math.sqrt(len(values))
    assert abs(values.std() - 1) < 4 / math.sqrt(2 * len(values))
    assert kstest(values, "norm").pvalue > 0.001
