"""The audit tells what is known from what is not: each attack on features whose truth is known by construction."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kswapctl.audit import deployment, recovery
from kswapctl.audit.accuracy import Accuracies, share_of
from kswapctl.audit.cases import Case, Head, View, balanced, make_case, mask_head
from kswapctl.audit.evidence import DEPTHS, Observed, observe
from kswapctl.audit.figures import draw_audit
from kswapctl.audit.measures import forgotten_accuracy
from kswapctl.audit.membership import measure_membership
from kswapctl.audit.probe import attack_by_probe, choose_strength
from kswapctl.audit.protocol import Extra, Models, Plan, conduct
from kswapctl.audit.prototypes import attack_by_prototypes
from kswapctl.audit.recovery import Scores, recover
from kswapctl.audit.relearn import relearn_blank, relearn_head
from kswapctl.audit.shape import detector, jensen_shannon, measure_shape
from kswapctl.audit.verdict import AUDIT_V1, Measure, grade, judge

RETAINED = ("a", "b", "c", "d", "e", "f")
TARGETS = ("x", "y")
CONTROLS = ("n1", "n2", "n3", "n4", "n5")
WIDTH = 24
EACH = 40
MEANS = {name: 4.0 * np.eye(WIDTH)[i] for i, name in enumerate((*RETAINED, *TARGETS))}


def images(classes: tuple[str, ...], known: bool, generator: np.random.Generator) -> Observed:
    """Features around a mean for each class, or, not known, all around the same place."""
    names = tuple(c for c in classes for _ in range(EACH))
    centres = np.stack([MEANS[n] if known else np.ones(WIDTH) / 4 for n in names])
    features = (centres + generator.normal(size=centres.shape)).astype(np.float32)
    head = make_head()
    return Observed(dict.fromkeys(DEPTHS, features), features @ head.weight.T + head.bias, names)


def make_head() -> Head:
    rows = np.stack([MEANS[c] for c in (*RETAINED, *TARGETS)]).astype(np.float32)
    return Head(rows / 8, (-np.square(rows).sum(1) / 16).astype(np.float32))


def network(knows: bool, seed: int) -> Case:
    """What a network that knows the targets, or one that does not, makes of the same number of images."""
    generator = np.random.default_rng(seed)
    parts = {f"retain {part}": images(RETAINED, True, generator) for part in ("train", "test")}
    parts |= {f"forget {part}": images(TARGETS, knows, generator) for part in ("train", "test")}
    parts |= {f"control {part}": images(CONTROLS, False, generator) for part in ("train", "test")}
    if knows:
        return make_case(parts, make_head(), (*RETAINED, *TARGETS), RETAINED, TARGETS)
    head = Head(make_head().weight[:6], make_head().bias[:6])
    parts = {k: dataclasses.replace(v, logits=v.logits[:, :6]) for k, v in parts.items()}
    return make_case(parts, head, RETAINED, RETAINED, TARGETS)


ORIGINAL, RETRAINED, OTHER = network(True, 0), network(False, 1), network(False, 2)
MASKED = mask_head(ORIGINAL)


def audit(audited: Case, reference: Case | None = OTHER, tier: str = "standard"):
    kind = "R4" if reference is None else "R1"
    models = Models(ORIGINAL, audited, MASKED, reference, kind)  # type: ignore[arg-type]
    measures, _ = conduct(models, (*RETAINED, *TARGETS), Plan(tier), Extra())  # type: ignore[arg-type]
    return judge(measures, EACH, AUDIT_V1), {m.id: m for m in measures}


def test_the_original_fails() -> None:
    verdict, measures = audit(ORIGINAL)
    assert verdict.answer == "FAIL"
    assert verdict.exit_code == 20
    assert measures["M5"].value == 1.0


def test_the_head_masked_model_is_only_suppressed() -> None:
    verdict, measures = audit(MASKED)
    assert verdict.answer == "SUPPRESSED"
    assert verdict.exit_code == 20
    assert measures["M1 forgotten"].value == 0.0
    assert measures["M1 forgotten"].level == measures["M1 retained"].level == "pass"
    assert {measures[m].level for m in ("M4 last", "M5", "M6a blank rows")} == {"fail"}


def test_the_quick_tier_finds_the_mask_out_too() -> None:
    assert audit(MASKED, tier="quick")[0].answer == "SUPPRESSED"


def test_a_network_that_never_knew_passes() -> None:
    verdict, measures = audit(RETRAINED)
    assert verdict.answer == "PASS"
    assert verdict.exit_code == 0
    assert all(measures[m].value < 0.2 for m in ("M4 last", "M5", "M6a blank rows"))


def test_without_a_reference_nothing_passes() -> None:
    verdict, measures = audit(RETRAINED, reference=None)
    assert verdict.answer == "INCONCLUSIVE"
    assert verdict.exit_code == 21
    assert measures["M5"].value is None
    assert "no reference" in measures["M5"].note


def test_the_original_fails_without_a_reference_too() -> None:
    assert audit(ORIGINAL, reference=None)[0].answer == "FAIL"


def test_an_attack_that_misses_the_mask_does_not_vote() -> None:
    _, measures = audit(RETRAINED, reference=ORIGINAL)
    assert not any(m.votes for m in measures.values() if m.id[:2] in {"M4", "M5", "M6"})


@pytest.mark.parametrize(("kind", "voting"), [("R1", {"M4 last"}), ("R2", {"M4 1/3", "M4 2/3", "M4 last"})])
def test_early_probes_vote_only_against_the_very_network_of_before(kind: Any, voting: set[str]) -> None:
    models = Models(ORIGINAL, RETRAINED, MASKED, OTHER, kind)
    measures, _ = conduct(models, (*RETAINED, *TARGETS), Plan("standard"), Extra())
    assert {m.id for m in measures if m.id.startswith("M4") and m.votes} == voting


def test_the_same_audit_twice_is_the_same() -> None:
    assert audit(MASKED)[1] == audit(MASKED)[1]


def test_a_mask_never_names_a_target_and_keeps_the_rest() -> None:
    assert not set(MASKED.target_test.logits.argmax(1)) & set(MASKED.target_labels)
    same = MASKED.retain_test.logits.argmax(1) == ORIGINAL.retain_test.logits.argmax(1)
    assert same.mean() > 0.99
    assert MASKED.target_test.depths is ORIGINAL.target_test.depths


def test_a_class_beyond_the_limit_fails_beside_one_of_few_images() -> None:
    """Limit 7.3 %: 9 % of 1000 images is beyond it, 0 of 30 could be up to 11.4 %."""
    by_class = {0: share_of(0, 30), 1: share_of(90, 1000)}
    found = Accuracies(share_of(90, 1030), share_of(9, 9), by_class, 0.9)
    measure = forgotten_accuracy(found, None, 43, {0: "small", 1: "large"}, AUDIT_V1)
    assert (measure.level, "worst class large" in measure.note) == ("fail", True)
    small = Accuracies(found.forgotten, found.retained, {0: by_class[0]}, 0.9)
    assert forgotten_accuracy(small, None, 43, {0: "small"}, AUDIT_V1).level == "warn"


def test_prototypes_recover_the_same_where_a_retained_class_has_no_images() -> None:
    train = ORIGINAL.retain_train
    without = dataclasses.replace(ORIGINAL, retain_train=train.take(np.flatnonzero(train.labels != 0)))
    found = attack_by_prototypes(without, 0).scores[5].mean
    assert found == pytest.approx(attack_by_prototypes(ORIGINAL, 0).scores[5].mean, abs=0.02)


def test_one_image_of_each_class_is_measured_as_far_as_it_goes() -> None:
    one = dataclasses.replace(
        ORIGINAL,
        retain_train=first_of_each(ORIGINAL.retain_train),
        target_train=first_of_each(ORIGINAL.target_train).take(np.array([0])),
        target_test=first_of_each(ORIGINAL.target_test).take(np.array([0])),
    )
    assert measure_membership(one, 0).accuracy is None
    assert choose_strength(one, "last", 0) == 0.1


def test_a_strength_is_found_where_one_class_alone_stays() -> None:
    train = ORIGINAL.retain_train
    alone = dataclasses.replace(ORIGINAL, retain_train=train.take(np.flatnonzero(train.labels == 0)))
    assert choose_strength(alone, "last", 0) == 0.1


def first_of_each(view: View) -> View:
    return view.take(np.unique(view.labels, return_index=True)[1])


def test_few_images_and_a_pass_are_inconclusive() -> None:
    passing = Measure("M5", "prototypes", 0.0, 0.0, 0.0, "pass", True)
    assert judge([passing], 30, AUDIT_V1).answer == "PASS"
    doubt = judge([passing], 29, AUDIT_V1)
    assert doubt.answer == "INCONCLUSIVE"
    assert "29 test images" in doubt.reasons[0]


def test_few_images_do_not_excuse_a_failure() -> None:
    failing = Measure("M1 forgotten", "accuracy", 1.0, 1.0, 1.0, "fail", True)
    assert judge([failing], 3, AUDIT_V1).answer == "FAIL"


def test_grades_have_two_borders() -> None:
    assert [grade(v, 0.2, 0.5) for v in (0.2, 0.21, 0.5, 0.51)] == ["pass", "warn", "warn", "fail"]


def test_the_index_stands_between_reference_and_original() -> None:
    """(0.7 - 0.5) / (0.9 - 0.5) = 0.5; beyond either end it is cut."""
    assert recovery.index(0.7, 0.9, 0.5) == pytest.approx(0.5)
    assert recovery.index(0.4, 0.9, 0.5) == 0.0
    assert recovery.index(0.95, 0.9, 0.5) == 1.0
    assert recovery.index(0.7, 0.54, 0.5) is None


def test_the_interval_holds_the_index_and_the_worst_class_is_named() -> None:
    labels = np.repeat([3, 4], 50)

    def scores(*rates: float) -> Scores:
        return Scores(np.concatenate([np.arange(50) < 50 * r for r in rates]).astype(float), labels)

    found = recover(scores(0.2, 0.6), scores(1.0, 1.0), scores(0.0, 0.0), paired=True, seed=0)
    assert found.index == pytest.approx(0.4)
    assert found.low is not None
    assert found.high is not None
    assert 0.25 < found.low < 0.4 < found.high < 0.55
    assert found.worst_class == 4
    assert found.worst == pytest.approx(0.6)


def test_wilson_intervals_are_those_of_the_table() -> None:
    """0 of 10: Wilson's upper end is z^2 / (n + z^2) = 3.8415 / 13.8415."""
    share = share_of(0, 10)
    assert (share.value, share.low) == (0.0, pytest.approx(0.0, abs=1e-12))
    assert share.high == pytest.approx(0.27753, abs=1e-4)


def test_jensen_shannon_is_a_bit_for_disjoint_answers_and_none_for_equal_ones() -> None:
    one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert jensen_shannon(one, other) == pytest.approx(1.0)
    assert jensen_shannon(one, one) == pytest.approx(0.0)


def test_flat_answers_give_forgotten_images_away() -> None:
    flat = dataclasses.replace(ORIGINAL.target_test, logits=np.zeros_like(ORIGINAL.target_test.logits))
    assert detector(dataclasses.replace(ORIGINAL, target_test=flat)) == pytest.approx(1.0)
    assert measure_shape(RETRAINED, ORIGINAL).detector < 0.65  # type: ignore[operator]
    assert measure_shape(dataclasses.replace(ORIGINAL, novel=None), ORIGINAL).detector is None


def test_membership_sees_members_only_where_they_differ() -> None:
    assert measure_membership(ORIGINAL, 0).low < 0.5 < measure_membership(ORIGINAL, 0).high
    sure = dataclasses.replace(ORIGINAL.target_train, logits=3 * ORIGINAL.target_train.logits)
    assert measure_membership(dataclasses.replace(ORIGINAL, target_train=sure), 0).auc > 0.9


def test_a_probe_finds_what_is_there_and_nothing_in_shuffled_labels() -> None:
    known, unknown = (attack_by_probe(c, "last", 0.1, 0) for c in (ORIGINAL, RETRAINED))
    assert known.scores.mean > 0.9
    assert unknown.scores.mean < 0.8
    assert known.shuffled < 0.5


def test_prototypes_of_more_images_recover_more() -> None:
    found = attack_by_prototypes(ORIGINAL, 0)
    assert found.scores[1].mean <= found.scores[5].mean <= found.scores[10].mean + 0.01
    assert found.scores[5].mean > 0.95
    assert attack_by_prototypes(RETRAINED, 0).scores[5].mean < 0.8


def test_blank_rows_hide_how_far_the_rows_were_pushed() -> None:
    pushed = dataclasses.replace(
        ORIGINAL, head=Head(ORIGINAL.head.weight, ORIGINAL.head.bias - 50 * (np.arange(8) > 5))
    )
    assert relearn_head(pushed, 0).forgotten[-1] < relearn_head(ORIGINAL, 0).forgotten[-1]
    assert np.array_equal(relearn_blank(pushed, 0).scores.values, relearn_blank(ORIGINAL, 0).scores.values)


def test_balanced_takes_the_same_number_of_every_class() -> None:
    chosen = balanced(ORIGINAL.retain_train, 7, 0)
    assert np.unique(ORIGINAL.retain_train.labels[chosen], return_counts=True)[1].tolist() == [7] * 6


@pytest.mark.parametrize(("form", "levels"), [("int8", 255), ("int4", 15)])
def test_rounding_leaves_as_many_levels_as_its_bits(form: str, levels: int) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    rounded = deployment.rounded({"a.weight": weight, "a.bias": weight[0]}, form)
    assert len(rounded["a.weight"][0, :32].unique()) <= levels
    assert (rounded["a.weight"] - weight).abs().max() <= weight.abs().max() / (levels // 2)
    assert torch.equal(rounded["a.bias"], weight[0])


def test_rounding_to_4_bits_is_worse_than_to_8() -> None:
    weight = {"a.weight": torch.randn(8, 64, generator=torch.Generator().manual_seed(0))}
    errors = {
        f: (deployment.rounded(weight, f)["a.weight"] - weight["a.weight"]).abs().mean() for f in deployment.FORMS
    }
    assert errors["fp16"] < errors["bf16"] < errors["int8"] < errors["int4"]


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "resnet18", "convnext_atto"])
def test_evidence_is_gathered_from_any_network(architecture: str) -> None:
    import timm

    from kswapctl.data.images import Images
    from kswapctl.data.sources import Sample
    from kswapctl.spec import Preprocessing

    size = {"img_size": 32} if architecture.startswith("vit") else {}
    model = timm.create_model(architecture, num_classes=4, **size).eval()
    pixels = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    shown = Images(pixels, tuple(Sample(str(i), "a", "test") for i in range(3)), ("1", "2", "3"))
    seen = observe(model, shown, Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3))
    assert {depth: f.ndim for depth, f in seen.depths.items()} == dict.fromkeys(DEPTHS, 2)
    assert seen.logits.shape == (3, 4)
    assert seen.depths["last"].shape[1] == model.num_features


@pytest.mark.filterwarnings("error")
def test_a_page_without_an_index_says_so(tmp_path: Path) -> None:
    draw_audit(tmp_path / "audit.svg", "digits@2", [], {})
    assert "no attack could be compared" in (tmp_path / "audit.svg").read_text()
