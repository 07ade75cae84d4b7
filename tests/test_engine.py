"What the training engine does beside the plain path: first stages, peers, assistants, enumeration, compiled networks, curves for TensorBoard, several ranks."
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kdnb.engine.execute as module
from kdnb.data.views import Views
from kdnb.data.images import load_images
from kdnb.engine.execute import Speed, enumerate_views, execute, load_net
from kdnb.engine.run import Phase, Run, describe, part
from kdnb.engine.train import Learner, Teachers, drawn_as, frozen, restore, state, train_epoch, views_for
from kdnb.engine.progress import Board
from kdnb.registry import InputError, losses, models
from kdnb.store import Store

IMAGES = load_images("digits").split(validation=100, train=128, test=100)
PHASE = Phase("classify", 2, 64, 0.05)


def student(**changes):
    return replace(Run("resnet8", "ce", (PHASE,), describe(IMAGES), 0), **changes)


TEACHER = student(net="resnet14")


def trained(run, teacher=None, epochs=None):
    nets = {TEACHER.key: teacher} if teacher else {}
    learner = Learner(run, IMAGES, teacher)
    while not learner.done and epochs != 0:
        train_epoch([learner], IMAGES, views_for(learner.current, IMAGES), Teachers(nets))
        epochs = epochs and epochs - 1
    return learner


def same(a, b):
    one, two = state(a)[0], state(b)[0]
    return one.keys() == two.keys() and all(v.equal(two[k]) for k, v in one.items())


def test_all_answers_are_asked_beforehand_where_a_schedule_is_long_enough(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "enumerate_views", lambda *rest: asked.append(1) or enumerate_views(*rest))
    views = Views(IMAGES.train_x, IMAGES).count
    long = replace(PHASE, epochs=views + 1)
    teacher = replace(TEACHER, phases=(replace(PHASE, epochs=1),))
    short, many = (student(phases=(p,), parts=(part("mse", 0.01, {}),), teacher=teacher) for p in (PHASE, long))
    execute([short], IMAGES, Store(tmp_path/"a"), live=False)
    assert not asked
    first = execute([many], IMAGES, Store(tmp_path/"a"), live=False)[many.key]
    assert asked
    monkeypatch.setattr(module, "CACHE", 0.0)
    second = execute([many], IMAGES, Store(tmp_path/"b"), live=False)[many.key]
    assert first["history"] == second["history"]


def test_a_run_with_a_peer_goes_on_where_it_was_stopped():
    run = student(parts=(part("dml", 1.0, {}),), peer="resnet14")
    whole, begun = trained(run), trained(run, epochs=1)
    tensors, about = state(begun)
    again = Learner(run, IMAGES)
    restore(again, {k: v.clone() for k, v in tensors.items()}, about)
    while not again.done: train_epoch([again], IMAGES, views_for(PHASE, IMAGES), Teachers())
    assert same(whole, again) and whole.history == again.history
    start = Learner(run, IMAGES)
    assert any(not p.equal(q) for p, q in zip(start.peer.parameters(), whole.peer.parameters()))


def test_after_a_first_stage_the_epochs_are_those_of_all_students():
    initial = student(phases=(replace(PHASE, kind="initial"), PHASE))
    plain, staged = Learner(student(), IMAGES), Learner(initial, IMAGES)
    assert drawn_as(staged) != drawn_as(plain)
    staged.phase = 1
    assert drawn_as(staged) == drawn_as(plain)
    contrast = Learner(student(objective="supcon", phases=(Phase("contrast", 1, 64, 0.1), Phase("linear", 1, 64, 0.1))), IMAGES)
    assert drawn_as(contrast) == 0


def test_a_warm_up_weighs_less_at_first():
    rising = part("mse", 2.0, {}, warmup=4)
    assert [rising.weight(e) for e in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0] and part("mse", 2.0, {}).weight(0) == 2.0


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT",
                    reason="where the processor has no vector instructions, torch's compiler writes code that does not compile")
def test_a_compiled_network_learns_the_same(tmp_path):
    run = student(net="resnet8", phases=(replace(PHASE, epochs=1),))
    plain = execute([run], IMAGES, Store(tmp_path/"a"), live=False)[run.key]
    quick = execute([run], IMAGES, Store(tmp_path/"b"), live=False, speed=Speed(compiled=True))[run.key]
    assert abs(plain["history"][0]["loss"] - quick["history"][0]["loss"]) < 1e-3


def test_folding_changes_nothing_but_rounding():
    torch.manual_seed(0)
    for name in ("resnet8", "resnet50"):
        net = models.build(name)
        net(torch.randn(8, 3, 32, 32))
        x = torch.randn(4, 3, 32, 32)
        plain = net.eval()(x)
        norms, logits = plain.norms, plain.logits.detach()
        out = frozen(net)(x)
        assert (out.logits - logits).abs().max() < 1e-4 * logits.abs().max()
        assert all(a.equal(b) for a, b in zip(out.norms, norms))
        assert not any(type(m) is torch.nn.BatchNorm2d for m in net.modules())


def test_curves_for_tensorboard(tmp_path):
    run = student()
    record = execute([run], IMAGES, Store(tmp_path/"a"), live=False, board=Board(tmp_path/"curves"))[run.key]
    curve = EventAccumulator(str(tmp_path/"curves"/run.label)).Reload().Scalars("test")
    assert [round(p.value, 3) for p in curve] == [round(r["test"], 3) for r in record["history"]]


def test_every_loss_is_that_of_the_whole_batch_on_two_ranks(tmp_path):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                           str(Path(__file__).with_name("ranks.py"))], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(set(done.stdout.split())) == sorted(losses.names())


def test_a_teacher_must_be_as_good_as_its_result_says(tmp_path):
    plan = [student(parts=(part("mse", 0.01, {}),), teacher=TEACHER)]
    execute(plan, IMAGES, Store(tmp_path), live=False)
    record = Store(tmp_path).results()[TEACHER.key]
    record["last"]["test"] += 5 if record["last"]["test"] < 90 else -5
    Store(tmp_path).finish(TEACHER.key, {k: v for k, v in record.items() if k not in ("schema", "key", "digest")})
    with pytest.raises(InputError, match="classifies .* of the test images"): load_net(TEACHER, Store(tmp_path), IMAGES)
