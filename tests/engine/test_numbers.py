"What the headline numbers rest on: which epoch is reported, at which rates a network learned, from whom, on which images."
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

import kdnb.engine.evaluate as evaluate
import kdnb.engine.execute as module
import kdnb.engine.train as train
from kdnb.contract import Network
from kdnb.data.images import load_images
from kdnb.data.views import Views
from kdnb.engine.evaluate import chosen, due, scored
from kdnb.engine.execute import How, save_checkpoint
from kdnb.engine.learner import Learner, optimiser_of
from kdnb.engine.metrics import metrics
from kdnb.engine.optimisers import optimisers
from kdnb.engine.run import Entry, Phase, Plan, Run, Weighted, optimised
from kdnb.engine.train import Teachers, batches, train_epoch, views_for
from kdnb.store import Store, read_tensors
from plain import HandSGD

IMAGES = load_images("digits").split(validation=100, train=128, test=100)
PHASE = Phase("classify", 2, 64, 0.05)
STUDENT = Run("resnet8_w4", "ce", (PHASE,), IMAGES.identity, 0)
TEACHER = replace(STUDENT, net="resnet8")


def execute(runs, folder, images=IMAGES, **how):
    "The results of some runs, executed as one plan."
    entries = tuple(Entry(run, "distilled", run.method, "t", run.net) for run in runs)
    return module.execute(Plan("toy", entries, "quick", images.identity), images, Store(folder), How(live=False, **how))


def weights(run, folder): return read_tensors(Store(folder).path("weights", run.key))[0]


def same(a, b): return a.keys() == b.keys() and all(value.equal(b[name]) for name, value in a.items())


# which epoch is reported

def rated(epoch, val, test, other=0.0):
    "A record of an epoch; `other` is what a second metric says."
    return {"epoch": epoch, "val": None if val is None else {"top1": val, "other": 100 - val},
            "test": {"top1": test, "other": other}}


HISTORY = [{"epoch": 1, "val": None, "test": None}, rated(2, 50.0, 60.0, 1.0), rated(3, 70.0, 40.0, 2.0), rated(4, 70.0, 55.0, 3.0),
           rated(5, 60.0, 60.0, 4.0), rated(6, 40.0, 45.0, 5.0), {"epoch": 7, "val": None, "test": None}]


def test_last_best_and_selected_are_three_epochs():
    "The last that was rated; the first of the best by test; the first of the best by validation, whatever it does on the test images."
    assert {how: r["epoch"] for how, r in chosen(HISTORY).items()} == {"last": 6, "best": 2, "selected": 3}


def test_every_metric_is_reported_of_the_epochs_that_top1_chose():
    assert scored(HISTORY) == {"epochs": {"last": 6, "best": 2, "selected": 3},
                               "scores": {"top1": {"last": 45.0, "best": 60.0, "selected": 40.0}, "other": {"last": 5.0, "best": 1.0, "selected": 2.0}}}


def test_an_epoch_without_validation_is_never_selected():
    assert chosen([rated(1, None, 90.0), rated(2, 0.0, 10.0)])["selected"]["epoch"] == 2
    assert {how: r["epoch"] for how, r in chosen([rated(1, None, 90.0), rated(2, None, 95.0), rated(3, None, 80.0)]).items()} == {"last": 3, "best": 2}


def test_without_a_rated_epoch_nothing_is_reported():
    assert chosen([HISTORY[0]]) == chosen([]) == {} and scored([HISTORY[0]]) == {"scores": {}, "epochs": {}}


def test_a_result_reports_what_validation_selected(tmp_path, monkeypatch):
    "Four epochs whose accuracies are made up: validation is best at the second, test at the third."
    says = {"val": iter([50.0, 80.0, 60.0, 70.0]), "test": iter([20.0, 30.0, 90.0, 40.0])}
    def made_up(net, x, y, images, precision="fp32"):
        part = next(part for part, own in (("val", images.val_x), ("test", images.test_x)) if own is x)
        return evaluate.Tested({"top1": next(says[part])}, torch.zeros(len(x), dtype=torch.int64))
    monkeypatch.setattr(train, "tested", made_up)
    run = replace(STUDENT, phases=(replace(PHASE, epochs=4),))
    record = execute([run], tmp_path)[run.key]
    assert record["scores"] == {"top1": {"last": 40.0, "best": 90.0, "selected": 30.0}} and record["epochs"] == {"last": 4, "best": 3, "selected": 2}


def test_other_test_labels_change_neither_weights_nor_what_is_selected(tmp_path):
    run, shifted = replace(STUDENT, phases=(replace(PHASE, epochs=4),)), replace(IMAGES, test_y=(IMAGES.test_y + 3) % 10)
    first, second = execute([run], tmp_path/"a")[run.key], execute([run], tmp_path/"b", shifted)[run.key]
    assert same(weights(run, tmp_path/"a"), weights(run, tmp_path/"b"))
    assert first["epochs"]["selected"] == second["epochs"]["selected"] and first["scores"] != second["scores"]


@pytest.mark.parametrize("kind,epochs,times,expected", [
    ("classify", 1, 20, [1]), ("classify", 3, 20, [1, 2, 3]), ("linear", 20, 20, list(range(1, 21))), ("classify", 240, 20, list(range(12, 241, 12))),
    ("classify", 45, 20, [3, 5, 7, 9, 12, 14, 16, 18, 21, 23, 25, 27, 30, 32, 34, 36, 39, 41, 43, 45]), ("classify", 7, 3, [3, 5, 7]),
    ("classify", 7, 1, [7]), ("initial", 3, 20, []), ("contrast", 3, 20, [])])
def test_evaluations_are_evenly_spaced_and_the_last_epoch_has_one(kind, epochs, times, expected):
    phase = Phase(kind, epochs, 64, 0.1, evaluations=times)
    assert [epoch + 1 for epoch in range(epochs) if due(phase, epoch)] == expected


def test_accuracy_is_the_share_of_right_answers_over_all_batches():
    "Of 501 images, one more than two batches; in percent, with four digits."
    x = load_images("digits").train_x[:501]
    torch.manual_seed(0)
    net = Learner(STUDENT, IMAGES).net
    net(torch.randn(16, *IMAGES.shape))  # statistics that are not those of the start
    found = evaluate.tested(net, x, torch.arange(501) % 10, IMAGES)
    assert net.training and any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()), "the network itself stays as it is"
    with torch.no_grad(): logits = net.eval()(Views(x, IMAGES, pad=0, flip=False).batch(0, 0, torch.arange(501))).logits
    assert found.predicted.equal(logits.argmax(1)) and len(found.predicted) == 501
    assert found.scores["top1"] == round(100 * int((found.predicted == torch.arange(501) % 10).sum()) / 501, 4)
    assert evaluate.tested(net, x[:0], x[:0], IMAGES) is None


def test_top5_is_for_more_than_twenty_classes():
    y = torch.tensor([0, 5, 6])
    assert metrics.build("top5")(torch.zeros(3, 20), y) is None
    logits = -torch.arange(21.).repeat(3, 1)
    assert metrics.build("top5")(logits, torch.tensor([0, 4, 5])).tolist() == [1, 1, 0]
    assert metrics.build("top5")(torch.zeros(2, 21), torch.tensor([4, 5])).tolist() == [1, 0], "of equals the lower class comes first"
    assert metrics.build("top1")(logits, torch.tensor([0, 1, 20])).tolist() == [1, 0, 0]


# at which rates

def rates(*phases, images=IMAGES):
    "The optimisers and learning rates that took the steps of a run, each with what it was made with."
    seen = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: seen.extend((type(o).__name__, dict(group)) for group in o.param_groups))
    learner = Learner(replace(STUDENT, phases=phases), images)
    try:
        while not learner.done: train_epoch([learner], images, views_for(learner.current, images), Teachers())
    finally: hook.remove()
    return seen


COSINE = [0.8, 0.769552, 0.682843, 0.553073, 0.4, 0.246927, 0.117157, 0.030448]  # of eight steps: 0.4 (1 + cos(k pi / 8))
SCHEDULES = [
    (Phase("classify", 2, 32, 0.8), COSINE),
    (Phase("classify", 4, 64, 0.8), COSINE),
    (Phase("classify", 2, 32, 0.8, shape="linear"), [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    (Phase("classify", 2, 32, 0.6, warmup=0.25, shape="linear"), [0, 0.3, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    (Phase("classify", 2, 32, 0.8, warmup=0.5), [0, 0.2, 0.4, 0.6, 0.8, 0.682843, 0.4, 0.117157]),
    (Phase("classify", 4, 64, 0.8, shape="step", cuts=(0.5, 0.75)), [0.8] * 4 + [0.08] * 2 + [0.008] * 2),
    (Phase("classify", 3, 128, 0.8, shape="step", cuts=(0.625, 0.75, 0.875)), [0.8, 0.8, 0.008]),
    (Phase("classify", 4, 64, 0.8, warmup=0.25, shape="step", cuts=(0.5,)), [0, 0.4, 0.8, 0.8] + [0.08] * 4),
    (Phase("classify", 2, 100, 0.8, shape="linear"), [0.8, 0.4])]


@pytest.mark.parametrize("phase,expected", SCHEDULES, ids=lambda value: "")
def test_the_optimiser_steps_at_the_rates_of_its_schedule(phase, expected):
    seen = [group["lr"] for _, group in rates(phase)]
    assert seen == pytest.approx(expected, abs=1e-6)


def test_every_phase_has_a_schedule_of_its_own():
    phases = Phase("contrast", 1, 32, 0.4, shape="linear"), Phase("linear", 2, 64, 0.8, shape="linear")
    seen = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    learner = Learner(replace(STUDENT, objective="supcon", phases=phases), IMAGES)
    try:
        while not learner.done: train_epoch([learner], IMAGES, views_for(learner.current, IMAGES), Teachers())
    finally: hook.remove()
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("spec,kind,options", [
    ("sgd", "SGD", {"momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, "lr": 0.05}),
    ("sgd@nesterov=True", "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "lr": 0.05}),
    ("sgd@momentum=0@nesterov=True", "SGD", {"momentum": 0, "nesterov": False, "lr": 0.05}),
    ("sgd@lr=0.2@weight_decay=0", "SGD", {"momentum": 0.9, "weight_decay": 0, "lr": 0.2}),
    ("adamw", "AdamW", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "lr": 0.001}),
    ("adamw@beta1=0.8@beta2=0.99@eps=0.1@lr=0.01", "AdamW", {"betas": (0.8, 0.99), "eps": 0.1, "weight_decay": 0.05, "lr": 0.01}),
    ("rmsprop", "RMSprop", {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3, "weight_decay": 5e-4, "lr": 0.01}),
    ("rmsprop@alpha=0.5@momentum=0@lr=0.1", "RMSprop", {"alpha": 0.5, "momentum": 0, "eps": 1e-3, "lr": 0.1})])
def test_an_optimiser_is_the_one_asked_for_with_its_options_at_every_step(spec, kind, options):
    seen = rates(optimised(replace(PHASE, epochs=1, shape="step"), spec))
    assert [name for name, _ in seen] == [kind] * 2
    assert all(group[name] == value for _, group in seen for name, value in options.items())


def gradients(): return [torch.tensor(g, dtype=torch.float64) for g in ([0.5, -1.0], [0.25, 2.0], [-1.0, 0.0])]


def by_hand(spec, p, lr, decay):
    "A parameter after three steps, by the equations of each optimiser."
    m = s = torch.zeros_like(p)
    for t, g in enumerate(gradients(), 1):
        if spec.startswith("sgd"):
            g = g + decay * p
            m = 0.9 * m + g
            p = p - lr * (g + 0.9 * m if "nesterov" in spec else m)
        elif spec == "adamw":
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
            p = p * (1 - lr * decay) - lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t))**0.5 + 1e-8)
        else:
            g = g + decay * p
            s = 0.9 * s + 0.1 * g**2
            m = 0.9 * m + g / (s**0.5 + 1e-3)
            p = p - lr * m
    return p


@pytest.mark.parametrize("spec", ["sgd", "sgd@nesterov=True", "adamw", "rmsprop"])
def test_an_optimiser_moves_a_parameter_as_its_equations_say(spec):
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    phase = replace(PHASE, optimiser=spec, lr=0.1, weight_decay=0.01)
    optimiser = optimiser_of(phase, [p])
    for g in gradients():
        p.grad = g
        optimiser.step()
    torch.testing.assert_close(p.data, by_hand(spec, torch.tensor([1.0, -2.0], dtype=torch.float64), 0.1, 0.01), atol=1e-10, rtol=1e-10)


def test_the_hand_written_optimiser_of_the_tests_is_the_same():
    p = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    for nesterov in (False, True):
        with torch.no_grad(): p.copy_(torch.tensor([1.0, -2.0]))
        hand = HandSGD([p], decay=0.01, nesterov=nesterov)
        for g in gradients(): hand.step((p * g).sum(), 0.1)
        torch.testing.assert_close(p.data, by_hand("sgd" + "@nesterov" * nesterov, torch.tensor([1.0, -2.0], dtype=torch.float64), 0.1, 0.01))


def test_a_decay_rate_is_at_least_0_and_below_1():
    assert optimisers.build("sgd", momentum=0).momentum == 0 and optimisers.build("adamw", beta1=0.0, beta2=0.0)
    for name, option in (("sgd", "momentum"), ("adamw", "beta1"), ("adamw", "beta2"), ("rmsprop", "alpha"), ("rmsprop", "momentum")):
        for wrong in (1, 1.5, -0.1):
            with pytest.raises(ValueError, match=option): optimisers.build(name, **{option: wrong})
    for name in ("adamw", "rmsprop"):
        with pytest.raises(ValueError, match="eps"): optimisers.build(name, eps=0)


# from whom

def test_students_of_two_teachers_in_one_group_are_those_of_each_teacher_alone(tmp_path, monkeypatch):
    "Answers that are kept, and maps that are not."
    teachers = TEACHER, replace(TEACHER, net="resnet8_w4@size=8", phases=(replace(PHASE, lr=0.01),))
    pupils = [replace(STUDENT, terms=(Weighted(loss, weight),), teacher=t) for t in teachers for loss, weight in (("kd", 5.0), ("at", 100.0))]
    sizes, real = [], module.train_epoch
    def counted(group, *rest):
        sizes.append({(learner.run.teacher.key, learner.run.method) for learner in group if learner.run.teacher})
        return real(group, *rest)
    monkeypatch.setattr(module, "train_epoch", counted)
    together = execute(pupils, tmp_path/"together")
    assert max(map(len, sizes)) == 4
    for i, pupil in enumerate(pupils):
        alone = execute([pupil], tmp_path/str(i))[pupil.key]
        assert alone["history"] == together[pupil.key]["history"] and same(weights(pupil, tmp_path/str(i)), weights(pupil, tmp_path/"together"))
    marks = {together[p.key]["weights"] for p in pupils}
    assert len(marks) == 4, "every teacher and loss makes another student"


# force

def test_force_begins_with_the_initial_weights(tmp_path, monkeypatch):
    "Neither with what was learned nor with a checkpoint."
    run = replace(STUDENT, phases=(replace(PHASE, epochs=1),))
    before = execute([run], tmp_path)[run.key]
    learned, started, real = weights(run, tmp_path), [], module.train_epoch
    def watched(group, *rest):
        started.extend({k: v.clone() for k, v in learner.net.state_dict().items()} for learner in group)
        return real(group, *rest)
    begun = Learner(run, IMAGES)
    initial = {k: v.clone() for k, v in begun.net.state_dict().items()}
    with torch.no_grad():
        for p in begun.net.parameters(): p.add_(1.0)
    begun.step = 1
    save_checkpoint(begun, Store(tmp_path))
    monkeypatch.setattr(module, "train_epoch", watched)
    after = execute([run], tmp_path, force=True)[run.key]
    assert same(started[0], initial) and not same(learned, initial)
    assert same(weights(run, tmp_path), learned) and after["history"] == before["history"] and len(started) == 1
    assert not Store(tmp_path).path("unfinished", run.key).exists()


def test_without_force_a_checkpoint_is_gone_on_from_and_a_result_stays(tmp_path):
    run = replace(STUDENT, phases=(replace(PHASE, epochs=1),))
    begun = Learner(run, IMAGES)
    with torch.no_grad():
        for p in begun.net.parameters(): p.add_(1.0)
    begun.step = 1
    save_checkpoint(begun, Store(tmp_path/"a"))
    resumed, fresh = execute([run], tmp_path/"a")[run.key], execute([run], tmp_path/"b")[run.key]
    assert resumed["history"] != fresh["history"]
    assert execute([run], tmp_path/"a")[run.key] == resumed


# on which images

def grey():
    "300 images of one grey each, so that any view of one tells which it is: 0 .. 99 to train on, 100 .. 174 to validate, 175 .. 249 to test."
    x = torch.arange(250, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    y = torch.arange(250) % 10
    return replace(IMAGES, train_x=x[:100], train_y=y[:100], val_x=x[100:175], val_y=y[100:175], test_x=x[175:], test_y=y[175:], pad=0)


def test_only_training_images_reach_a_training_step(tmp_path, monkeypatch):
    "In every kind of phase; validation and test images are seen by the evaluation alone, and it sees no other."
    images, scoring, seen = grey(), [False], {"learning": Counter(), "scoring": Counter()}
    classify = Phase("classify", 2, 25, 0.01)
    teacher = Run("resnet8", "ce", (classify,), images.identity, 0)
    supcon = replace(teacher, objective="supcon", phases=(Phase("contrast", 1, 25, 0.01), Phase("linear", 1, 25, 0.01)))
    pupil = replace(teacher, net="resnet8_w4")
    runs = [supcon, replace(pupil, terms=(Weighted("crd", 0.1),), teacher=teacher), replace(pupil, terms=(Weighted("kd", 0.1),), teacher=teacher),
            replace(pupil, terms=(Weighted("ab", 0.1),), teacher=teacher, phases=(replace(classify, kind="initial", epochs=1), classify)),
            replace(pupil, terms=(Weighted("dml"),), peer="resnet8")]
    mean, std = images.mean[0], images.std[0]

    def saw(net, given):
        if not isinstance(net, Network): return
        values = given[0].flatten(1)
        assert (values.amax(1) - values.amin(1)).max() < 1e-3, "an image is of one grey"
        seen["scoring" if scoring[0] else "learning"].update((255 * (values.mean(1).double() * std + mean)).round().long().tolist())

    def scored_apart(*arguments):
        scoring[0] = True
        try: return evaluate.tested(*arguments)
        finally: scoring[0] = False
    for place in (train, module): monkeypatch.setattr(place, "tested", scored_apart)
    monkeypatch.setattr(module, "costs", lambda runs, images: {"resnet8": 1, "resnet8_w4": 1})
    hook = register_module_forward_pre_hook(saw)
    try: execute(runs, tmp_path, images)
    finally: hook.remove()
    assert set(seen["learning"]) == set(range(100)) and set(seen["scoring"]) == set(range(100, 250))
    assert min(seen["learning"].values()) >= 2 and len(set(list(seen["learning"].values())[2:])) == 1, "each as often as any other"


@pytest.mark.parametrize("n,batch,sizes", [(128, 64, [64, 64]), (128, 50, [50, 50]), (128, 128, [128]), (128, 500, [128])])
def test_an_epoch_has_whole_batches_of_different_images(n, batch, sizes):
    todo = batches(replace(PHASE, batch=batch), 0, 3, IMAGES)
    assert list(map(len, todo)) == sizes and torch.cat(todo).unique().numel() == sum(sizes)
