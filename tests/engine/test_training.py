"What the training engine does beside the plain path: first stages, peers, assistants, enumeration, compiled networks, curves for TensorBoard, several ranks."
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kdnb.engine.execute as module
from kdnb.data.images import load_images
from kdnb.data.views import Views
from kdnb.engine.execute import How, Speed, determined, enumerate_views, load_net
from kdnb.engine.learner import Learner, is_unsafe, state
from kdnb.engine.optimisers import optimisers
from kdnb.engine.progress import Board
from kdnb.engine.run import Entry, Phase, Plan, Run, Weighted, optimised
from kdnb.engine.frozen import frozen
from kdnb.engine.restore import restore
from kdnb.engine.train import Teachers, drawn_as, train_epoch, views_for
from kdnb.registry import InputError, losses, models
from kdnb.store import Store

IMAGES = load_images("digits").split(validation=100, train=128, test=100)
PHASE = Phase("classify", 2, 64, 0.05)


def student(**changes):
    return replace(Run("resnet8", "ce", (PHASE,), IMAGES.identity, 0), **changes)


TEACHER = student(net="resnet14")


def execute(runs, store, **how):
    "The results of some runs, each an entry of a small plan."
    entries = tuple(Entry(run, "distilled" if run.terms else "student", run.method, "resnet14", run.net) for run in runs)
    return module.execute(Plan("toy", entries, "quick", IMAGES.identity), IMAGES, store, How(live=False, **how))


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
    short, many = (student(phases=(p,), terms=(Weighted("mse", 0.01),), teacher=teacher) for p in (PHASE, long))
    execute([short], Store(tmp_path/"a"))
    assert not asked
    first = execute([many], Store(tmp_path/"a"))[many.key]
    assert asked
    monkeypatch.setattr(module, "CACHE", 0.0)
    second = execute([many], Store(tmp_path/"b"))[many.key]
    assert first["history"] == second["history"]


def test_a_run_with_a_peer_goes_on_where_it_was_stopped():
    run = student(terms=(Weighted("dml"),), peer="resnet14")
    whole, begun = trained(run), trained(run, epochs=1)
    tensors, about = state(begun)
    again = Learner(run, IMAGES)
    restore(again, {k: v.clone() for k, v in tensors.items()}, about)
    while not again.done: train_epoch([again], IMAGES, views_for(PHASE, IMAGES), Teachers())
    assert same(whole, again) and whole.history == again.history
    start = Learner(run, IMAGES)
    assert any(not p.equal(q) for p, q in zip(start.peer.parameters(), whole.peer.parameters()))


@pytest.mark.parametrize("name", optimisers.names())
def test_every_optimiser_resumes_bit_by_bit(name):
    run = student(phases=(optimised(PHASE, name),))
    whole, begun = trained(run), trained(run, epochs=1)
    tensors, about = state(begun)
    again = Learner(run, IMAGES)
    restore(again, {k: v.clone() for k, v in tensors.items()}, about)
    while not again.done: train_epoch([again], IMAGES, views_for(PHASE, IMAGES), Teachers())
    assert same(whole, again) and whole.history == again.history
    assert run.key != student().key


def test_after_a_first_stage_the_epochs_are_those_of_all_students():
    initial = student(phases=(replace(PHASE, kind="initial"), PHASE))
    plain, staged = Learner(student(), IMAGES), Learner(initial, IMAGES)
    assert drawn_as(staged) != drawn_as(plain)
    staged.phase = 1
    assert drawn_as(staged) == drawn_as(plain)
    contrast = Learner(student(objective="supcon", phases=(Phase("contrast", 1, 64, 0.1), Phase("linear", 1, 64, 0.1))), IMAGES)
    assert drawn_as(contrast) == 0


def test_a_warm_up_weighs_less_at_first():
    rising = Weighted("mse", 2.0, warmup=4)
    assert [rising.at(e) for e in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0] and Weighted("mse", 2.0).at(0) == 2.0


def test_a_compiled_network_learns_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path/"inductor"))  # code kept by another processor would be run
    run = student(net="resnet8", phases=(replace(PHASE, epochs=1),))
    plain = execute([run], Store(tmp_path/"a"))[run.key]
    quick = execute([run], Store(tmp_path/"b"), speed=Speed(compiled=True))[run.key]
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
    record = execute([run], Store(tmp_path/"a"), board=Board(tmp_path/"curves"))[run.key]
    curve = EventAccumulator(str(tmp_path/"curves"/run.label)).Reload().Scalars("test/top1")
    assert [round(p.value, 3) for p in curve] == [round(r["test"]["top1"], 3) for r in record["history"]]


def test_every_loss_is_that_of_the_whole_batch_on_two_ranks(tmp_path):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                           str(Path(__file__).parents[1]/"ranks.py")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(set(done.stdout.split())) == sorted(losses.names())


def test_a_teacher_must_be_as_good_as_its_result_says(tmp_path):
    plan = [student(terms=(Weighted("mse", 0.01),), teacher=TEACHER)]
    execute(plan, Store(tmp_path))
    record = Store(tmp_path).results()[TEACHER.key]
    record["scores"]["top1"]["last"] += 5 if record["scores"]["top1"]["last"] < 90 else -5
    Store(tmp_path).finish(record)
    with pytest.raises(InputError, match="classifies .* of the test images"): load_net(TEACHER, Store(tmp_path), IMAGES)


def test_a_strided_convolution_of_few_channels_is_safe_with_avx2():
    "oneDNN 6035: unsafe, the gradients of this script are wrong or the process crashes."
    code = """
import torch
from torch import nn
from kdnb.engine.learner import laid_out
torch.manual_seed(0)
for channels in (2, 4, 7, 8):
    for _ in range(20):
        x, wanted = torch.randn(32, channels, 8, 8), torch.randn(32, 8, 4, 4)
        conv = laid_out(nn.Conv2d(channels, 8, 1, 2, bias=False), x.device)
        conv(x.contiguous(memory_format=torch.channels_last)).backward(wanted.contiguous(memory_format=torch.channels_last))
        expected = torch.einsum("bohw,bihw->oi", wanted.double(), x[:, :, ::2, ::2].double())
        torch.testing.assert_close(conv.weight.grad[:, :, 0, 0].double(), expected, atol=1e-3, rtol=1e-3)
print("right")
"""
    for threads in ("1", "2"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
        assert done.stdout.strip() == "right", done.stderr[-1000:]


def test_networks_are_laid_out_safely_before_they_learn():
    run = Run("resnet8_w4", "ce", (Phase("classify", 1, 64, 0.1),), IMAGES.identity, 0)
    net = Learner(run, IMAGES).net
    assert any(isinstance(m, torch.nn.Conv2d) and m._forward_pre_hooks for m in net.modules())
    assert not any(is_unsafe(m) for m in net.modules() if isinstance(m, torch.nn.Conv2d))


def arithmetic(): return (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
                          torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled())


@pytest.mark.parametrize("wanted,speed,during", [
    (False, Speed(), ("highest", False, False, True, False, False)), (True, Speed(), ("highest", False, False, False, True, True)),
    (False, Speed(tf32=True, cudnn_benchmark=False), ("high", True, True, False, False, False))])
def test_what_decides_the_last_bits_on_a_gpu_is_declared_and_put_back(wanted, speed, during):
    before = arithmetic()
    with pytest.raises(KeyError), determined(wanted, speed):
        assert arithmetic() == during
        raise KeyError
    assert arithmetic() == before


def test_the_choices_stand_with_a_gpu_s_name_and_with_no_cpu_s(tmp_path):
    assert How().said("cuda:0") == ", fp32 without TF32, cudnn.benchmark on" and How().said("cpu") == ""
    assert How(deterministic=True, speed=Speed(tf32=True)).said("cuda") == ", fp32 rounded to TF32, cudnn.benchmark off"
    run = student(phases=(replace(PHASE, epochs=1),))
    seen, real = [], module.train_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_epoch", lambda *rest: seen.append(arithmetic()) or real(*rest))
        patch.setattr(How, "said", lambda self, device: ", as declared")
        record = execute([run], Store(tmp_path))[run.key]
    assert record["device"].endswith(", as declared") and seen[0][:4] == ("highest", False, False, True)


def heard(monkeypatch):
    "The images that teachers are asked for from now on, by pass, and what is told."
    asked, said, real = [], [], module.load_net
    def load(run, *rest):
        net = real(run, *rest)
        net.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
        return net
    monkeypatch.setattr(module, "load_net", load)
    monkeypatch.setattr(module, "tell", said.append)
    return asked, said


def taught(*phases, **changes): return [student(phases=(p,), terms=(Weighted("mse", 0.01),), teacher=TEACHER, **changes) for p in phases]


def plan_of(runs): return Plan("toy", tuple(Entry(run, "distilled", run.method, "resnet14", run.net) for run in runs), "quick", IMAGES.identity)


def numbers(results): return {key: (r["history"], r["weights"]) for key, r in results.items()}


@pytest.mark.parametrize("budget,passes,size", [(4e9, 3, "2 epochs, 0.0 MB"), (128 * 20 * 1.5, 4, "1 epoch, 0.0 MB"), (0.0, 5, None)])
def test_an_epoch_that_two_groups_ask_is_asked_once_and_nothing_else_is_kept(tmp_path, monkeypatch, budget, passes, size):
    runs = taught(PHASE, replace(PHASE, epochs=3))
    module.execute(plan_of([TEACHER]), IMAGES, Store(tmp_path/"a"), How(live=False))
    plain = module.execute(plan_of(runs), IMAGES, Store(tmp_path/"b"), How(live=False))
    asked, said = heard(monkeypatch)
    monkeypatch.setattr(module, "CACHE", budget)
    found = module.execute(plan_of(runs), IMAGES, Store(tmp_path/"a"))
    assert asked.count(64) == 2 * passes and sorted(set(asked)) == [1, 2, 64], "what is beyond the budget is computed"
    kept = [line for line in said if "kept" in line]
    assert kept == ([f"kept: what {TEACHER.label} says of {size}"] if size else []) and not (tmp_path/"a/caches").exists()
    assert numbers(found) == numbers(plain)


def test_students_in_lockstep_keep_nothing(tmp_path, monkeypatch):
    runs = taught(PHASE) + [replace(taught(PHASE)[0], terms=(Weighted("kd"),))]
    asked, said = heard(monkeypatch)
    monkeypatch.setattr(module, "TeacherCache", None)
    module.execute(plan_of(runs), IMAGES, Store(tmp_path))
    assert asked.count(64) == 4 and not any("kept" in line for line in said) and not (tmp_path/"caches").exists()


def test_answers_are_kept_for_later_tables_where_that_is_asked(tmp_path, monkeypatch):
    first, later = taught(PHASE)[0], replace(taught(PHASE)[0], terms=(Weighted("mse", 0.02),))
    asked, _ = heard(monkeypatch)
    for run, passes in ((first, 4), (later, 0)):
        asked.clear()
        module.execute(plan_of([run]), IMAGES, Store(tmp_path), How(answers=True))
        assert asked.count(64) == passes


def test_all_views_are_asked_in_one_pass_for_all_seeds_and_teachers(tmp_path, monkeypatch):
    views = Views(IMAGES.train_x, IMAGES).count
    long, other = replace(PHASE, epochs=views // 2 + 1), replace(TEACHER, seed=5)
    runs = [run for seed in (0, 1) for run in taught(long, seed=seed)] + [replace(taught(long, seed=seed)[0], teacher=other) for seed in (0, 1)]
    made, real = [], module.enumerate_views
    monkeypatch.setattr(module, "enumerate_views", lambda teachers, *rest: made.append(len(teachers.caches)) or real(teachers, *rest))
    asked, said = heard(monkeypatch)
    found = module.execute(plan_of(runs), IMAGES, Store(tmp_path/"a"))
    assert made == [2] and asked.count(64) == 2 * 2 * views and sum("all views" in line for line in said) == 2
    asked.clear()
    monkeypatch.setattr(module, "CACHE", 0.0)
    assert numbers(module.execute(plan_of(runs), IMAGES, Store(tmp_path/"b"))) == numbers(found)
    assert made == [2] and asked.count(64) == 2 * 4 * long.epochs
