"The made-up results are what the reports' notebooks and tests say of them."
import pytest

from kdnb.report.example import config_of, diverged, history_of, many_losses, plan_of, result_of, three_runs, two_pairs


def accuracies(results):
    "The last accuracy by network, loss and seed."
    return {(r["config"]["net"], *(t["loss"] for t in r["config"]["terms"]), r["config"]["seed"]): r["scores"]["top1"]["last"] for r in results.values()}


def test_three_runs_are_a_teacher_a_student_and_gram():
    plans, results = three_runs()
    assert accuracies(results) == {("resnet14", 0): 95.0, ("resnet8", 0): 90.0, ("resnet8", "gram", 0): 91.0}
    assert [e["row"] for e in plans[0]["entries"]] == ["teacher", "student", "gram"] and accuracies(three_runs(80.0)[1])["resnet8", "gram", 0] == 80.0


def test_two_pairs_have_known_gains_in_every_seed_and_protocol():
    plans, results = two_pairs()
    found = accuracies(results)
    assert len(plans[0]["entries"]) == 2 * 2 * 3 * 5
    for seed in range(3):
        for net, alone in (("resnet20", 95.0), ("resnet14", 92.0), ("resnet8", 88.0)): assert found[net, seed] == pytest.approx(alone + 0.3 * seed)
        for loss, gains in {"kd": (0.9, 1.0, 1.1), "gram": (2.0, 2.5, 3.0), "at": (-0.5, 0.1, 0.2)}.items():
            for net in ("resnet14", "resnet8"): assert found[net, loss, seed] - found[net, seed] == pytest.approx(gains[seed])
    lengths = {(r["config"]["terms"] or [{"loss": ""}])[0]["loss"]: set() for r in results.values()}
    for r in results.values(): lengths[(r["config"]["terms"] or [{"loss": ""}])[0]["loss"]].add(r["config"]["phases"][0]["epochs"])
    assert lengths == {"": {7}, "kd": {7}, "gram": {7}, "at": {7, 9}}, "at alone has another training as published"


def test_many_losses_are_spread_over_six_percent():
    plans, results = many_losses(12)
    found = accuracies(results)
    assert len(results) == 3 * 14 and [found["resnet14", s] for s in range(3)] == pytest.approx([95.0, 94.8, 94.6])
    assert [found["resnet8", s] for s in range(3)] == pytest.approx([88.0, 88.3, 88.6])
    assert found["resnet8", "kd", 2] == pytest.approx(89.1) and found["resnet8", "loss01", 2] == pytest.approx(92.8)
    assert found["resnet8", "loss11", 1] == pytest.approx(88.9) and found["resnet8", "loss02", 0] == pytest.approx(90.0)
    assert len(many_losses(2, 1)[1]) == 4


def test_a_history_ends_at_the_last_accuracy():
    tests = [r["test"]["top1"] for r in history_of(90.0)]
    assert tests == [70.0, 80.0, 85.0, 87.5, 88.75, 89.375, 90.0] and [r["loss"] for r in history_of(1.0, 2)] == [2.0, 1.0]
    assert [r["epoch"] for r in history_of(90.0, 3)] == [1, 2, 3] and history_of(5.0, 2)[0]["val"] == {"top1": -15.0}


def test_a_made_up_result_has_the_fields_of_a_real_one():
    teacher = config_of("resnet14", 1)
    made = result_of(config_of("resnet8", 1, "kd", teacher), 80.0)
    assert made["scores"] == {"top1": {"last": 80.0, "best": 80.5, "selected": 79.75}} and made["training"] == "7 epochs, batch 64" and made["wording"] == "weight 1"
    assert set(made["code"]) == {"engine", "network resnet8", "loss kd"} and len(made["key"]) == 16 and made["seconds"] == 12.0
    assert made["config"]["data"] == {"name": "digits", "train": 1000, "validation": 200, "test": 300, "fingerprint": "ab12cd34ef56"}
    assert made["config"]["phases"] == [{"kind": "classify", "epochs": 7, "batch": 64, "lr": 0.1, "shape": "linear"}] and made["config"]["cross_entropy"] == 1
    assert result_of(config_of("resnet8", 1, None, None, objective="supcon"), 1.0, seconds=5)["objective"] == "supcon"
    assert diverged(made)["scores"] == {} and diverged(made)["outcome"] == "NaN at epoch 1, step 3" and diverged(made, "x")["outcome"] == "x"
    assert plan_of([], preset="paper")["preset"] == "paper" and plan_of([])["schema"] == 2
