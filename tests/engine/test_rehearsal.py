"A whole step, rehearsed where there is no GPU: nothing is read from the device and nothing copied to it, and what is launched and what Python does are counted."
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdnb.bench import NOTHING, Launches, hollow, random_images
from kdnb.data.images import load_images
from kdnb.data.views import StrongViews, Views
from kdnb.engine.learner import Learner
from kdnb.engine.run import Phase, Run, distill, weighted
from kdnb.engine.stopwatch import Stopwatch
from kdnb.engine.train import Epoch, Teachers, drawn, steps_of
from kdnb.models.pretrained import network
from kdnb.registry import losses

PHASE = Phase("classify", 10, 64, 0.05)
FAULTS = {"read": "_local_scalar_dense", "branch": "_local_scalar_dense", "pick": "nonzero", "copy": "copies to the device", "mix": "cpu", "back": "cpu"}


@pytest.fixture(scope="module")
def rehearsed():
    "What every case did that it should not, and its operations, from a process of its own: the pretended device is torch's until the process ends."
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("pretended.py"))], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_loss_that_a_resnet_can_teach_is_rehearsed(rehearsed):
    taught = {name for name in losses.names() if "attention" not in losses.build(name).needs}
    ways = {"kd+gram, asked", "kd+gram, kept", "kd+gram, view", "kd+gram, sgd", "kd+gram, adamw", "kd+gram, rmsprop"}
    assert rehearsed.keys() == taught | ways | set(FAULTS) | {"ce", "contrast and linear"}


def test_no_step_reads_the_device_or_copies_to_it(rehearsed):
    assert {name: said for name, (said, _) in rehearsed.items() if said and name not in FAULTS} == {}
    assert all(count.get("convolution", 0) >= 2 * 9 for name, (_, count) in rehearsed.items() if name not in FAULTS), "two steps were watched"


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rehearsal_finds_a_planted_fault(rehearsed, fault):
    assert any(FAULTS[fault] in said for said in rehearsed[fault][0])


def test_answers_are_looked_up_or_written_in_place(rehearsed):
    passes = {name: rehearsed[f"kd+gram, {name}"][1]["convolution"] for name in ("sgd", "asked", "kept", "view")}
    assert passes["sgd"] == passes["asked"] > passes["kept"] == passes["view"]
    assert rehearsed["kd+gram, asked"][1]["index_copy_"] == 2 * 2 and "index_copy_" not in rehearsed["kd+gram, kept"][1]


def test_one_kernel_updates_all_parameters_of_a_gpu(rehearsed):
    assert rehearsed["kd+gram, sgd"][1]["_fused_sgd_"] == rehearsed["kd+gram, adamw"][1]["_fused_adamw_"] == 2


@pytest.mark.parametrize("kind,most", [(Views, 4), (StrongViews, 22)])
def test_an_input_is_few_launches(kind, most):
    images = random_images(1000)
    views = kind(images.train_x, images)
    views.chunk = 10**6   # as on a GPU
    with Launches() as drawing: batch, *others = drawn(torch.arange(1000), 50, images, views, Teachers(), [], 0, 0)
    with Launches() as showing: views.shown(*batch.drawn).contiguous(memory_format=torch.channels_last)
    assert sum(showing.count.values()) <= most and len(others) == 19
    assert sum(drawing.count.values()) < 130, "once for all of these batches"


def learner(images, way=lambda made: made):
    alone = Run("resnet8", "ce", (PHASE,), images.identity, 0)
    return way(Learner(distill(alone, (weighted("kd", 0.1),), replace(alone, net="resnet14")), images, network("resnet14", images)))


def calls(group, images, steps):
    "The calls of the project's own functions in so many steps."
    seen, root = [], str(Path(sys.modules["kdnb"].__file__).parent)
    def look(frame, event, _):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(root) and not name.endswith("bench.py"): seen.append(frame.f_code.co_name)
    teachers = Teachers()
    teachers.outputs = lambda keys, *rest: dict.fromkeys(keys, NOTHING)
    images = replace(images, train_x=images.train_x[:64 * steps], train_y=images.train_y[:64 * steps])
    views = Views(images.train_x, images)
    watch = Stopwatch("cpu")
    watch.every = 50  # as on a GPU
    sys.setprofile(look)
    try: steps_of(Epoch(group, images, views, teachers, watch), lambda done: None)
    finally: sys.setprofile(None)
    return seen


def test_a_student_s_step_is_a_handful_of_calls():
    images = load_images("digits")
    one = lambda count, steps: len(calls([learner(images, hollow) for _ in range(count)], images, steps))
    more, fewer = one(2, 12) - one(2, 4), one(1, 12) - one(1, 4)
    assert (more - fewer) / 8 <= 10, "calls for each student and step"
    assert (2 * fewer - more) / 8 <= 12, "and for the batch"


def test_a_key_is_asked_for_once_and_not_in_each_step():
    images = load_images("digits")
    assert calls([learner(images, hollow)], images, 6).count("key_of") == 1


def test_a_run_s_key_is_made_once_and_is_not_part_of_it():
    images = load_images("digits")
    run = Run("resnet8", "ce", (PHASE,), images.identity, 0)
    key, other = run.key, Run("resnet8", "ce", (PHASE,), images.identity, 0)
    assert run == other and hash(run) == hash(other) and run.key is key == other.key
    assert replace(run, seed=1).key != key and replace(run).key == key and "key" not in run.config
