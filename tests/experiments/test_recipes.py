"""Every experiment's numbers against a loop in plain PyTorch, in which the recipe is written out: epochs, rates, weights, images and their order.

A few steps only: as soon as rounding has one ReLU open that is closed in the other loop, the two part."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdnb.experiments.experiment as experiment
import kdnb.experiments.hakd as hakd
from kdnb.data.images import load_images
from kdnb.data.views import StrongViews
from kdnb.experiments.crd_benchmark import CRDBenchmark
from kdnb.experiments.hakd import HAKD
from kdnb.experiments.lee2025 import Lee2025
from kdnb.store import read_tensors
from notebooks import experiment_of
from plain import accuracy, begun, cosine, cut, risen_and_fallen, shown, soft_labels, train_plainly

EPOCHS = 2     # of every phase
CLOSE = 0.005  # of the way that the weights went; rounding is far below, whatever is done wrong far above
CONTRASTED = 0.12  # a contrast parts sooner, by up to 0.05; a rate of 0.12 instead of 0.1, or a temperature as far off, is 0.24
DIGITS = load_images("digits")
FEW = replace(DIGITS, train_x=DIGITS.train_x[:240], train_y=DIGITS.train_y[:240])  # 48 of them are held out


class Tried:
    "A table that was run on digits with one seed, and what it left."
    def __init__(self, kind, name, folder, **asked):
        table = experiment_of(name)[1]
        with pytest.MonkeyPatch.context() as patch:
            for module in (experiment, hakd): patch.setattr(module, "load_images", lambda *_: FEW)
            self.made(kind, table, folder, asked)

    def made(self, kind, table, folder, asked):
        self.p = kind(table=table, data="digits", preset="quick", seeds=1, device="cpu", reports=str(folder), **{"epochs": EPOCHS} | asked)
        self.images, self.results = self.p.images, self.p.train(live=False)

    def run(self, role, row, objective="ce"):
        "The run of an entry, and the objective at its root."
        return next(e.run for e in self.p.plans[0].entries if (e.role, e.row, e.run.root.objective) == (role, row, objective))

    def left(self, run):
        "The weights that a run left."
        return read_tensors(self.p.store.path("weights", run.key))[0]

    def agrees(self, run, net, losses, close=CLOSE, apart=1):
        "Asserts that a network and its epochs' losses are those of the run; scores may differ by `apart` images."
        record, images = self.results[run.key], self.images
        assert [r["loss"] for r in record["history"]] == pytest.approx(losses, rel=2e-3)
        assert distance(net, self.left(run), begun(run.net, images, 0)) < close
        found = {part: accuracy(net, x, y, images) for part, x, y in (("val", images.val_x, images.val_y), ("test", images.test_x, images.test_y))}
        last = record["history"][-1]
        assert all(abs(last[part]["top1"] - found[part]) < (100 * apart + 1) / len(y) for part, y in (("val", images.val_y), ("test", images.test_y)))
        assert record["scores"]["top1"]["last"] == last["test"]["top1"]


def distance(net, tensors, start):
    "How far a network's parameters are from others, as a share of the way from the start."
    pairs = [(p.detach(), tensors[name], q.detach()) for (name, p), q in zip(net.named_parameters(), start.parameters())]
    return math.sqrt(sum(float((a - b).square().sum()) for a, b, _ in pairs) / sum(float((a - c).square().sum()) for a, _, c in pairs))


def classified(net, teacher=None, share=1.0, weight=0.0, T=4.0):
    "Cross-entropy and soft labels of a batch; the teacher answers in evaluation mode, in half precision."
    net.train()
    if teacher is not None: teacher.eval()
    def loss(x, y, index):
        s = net(x).logits
        found = share * F.cross_entropy(s, y)
        if teacher is None: return found
        with torch.no_grad(): t = teacher(x).logits.half().float()
        return found + weight * soft_labels(s, t, T)
    return loss


def alone(name, images, epochs, batch, rate, nesterov=True):
    "A network trained with cross-entropy, and its losses."
    net = begun(name, images, 0)
    return net, train_plainly(net, images, 0, epochs, batch, rate, classified(net), nesterov)


def taught(name, teacher, images, epochs, batch, rate, nesterov=True, **weights):
    "A network distilled with soft labels, and its losses."
    net = begun(name, images, 0)
    return net, train_plainly(net, images, 0, epochs, batch, rate, classified(net, teacher, **weights), nesterov)


# lee2025: on digits resnet8 teaches resnet8_w4; batch 64, 0.1 after a rise over a fifth, falling linearly; kd has weight 1 and T = 2

RISE = risen_and_fallen(0.1, 0.2)


@pytest.fixture(scope="module")
def lee2025(tmp_path_factory): return Tried(Lee2025, "cifar10_supcon", tmp_path_factory.mktemp("lee2025"), loss="kd")


@pytest.fixture(scope="module")
def lee_teacher(lee2025): return alone("resnet8", lee2025.images, EPOCHS, 64, RISE)


def test_lee2025_trains_a_teacher_and_a_student(lee2025, lee_teacher):
    lee2025.agrees(lee2025.run("teacher", "teacher"), *lee_teacher)
    lee2025.agrees(lee2025.run("student", "student"), *alone("resnet8_w4", lee2025.images, EPOCHS, 64, RISE))


def test_lee2025_distills_with_soft_labels(lee2025, lee_teacher):
    lee2025.agrees(lee2025.run("distilled", "kd"), *taught("resnet8_w4", lee_teacher[0], lee2025.images, EPOCHS, 64, RISE, weight=1.0, T=2.0))


def contrast(z, y, tau):
    "Supervised contrast, anchor by anchor: the others of its class against all others."
    z = F.normalize(z, dim=1)
    total, n = 0.0, len(z)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        scores = z[others] @ z[i] / tau
        same = y[others] == y[i]
        total = total - (scores - scores.logsumexp(0))[same].mean()
    return total / n


def supcon(name, images):
    "A network trained by contrast of two views, and then its classifier; the losses of all epochs."
    net = begun(name, images, 0)
    head = nn.Sequential(nn.Linear(net.width, net.width), nn.ReLU(), nn.Linear(net.width, 128))
    strong = StrongViews(images.train_x, images)
    def both(images, seed, epoch, index): return strong.pair(seed, epoch, torch.tensor(index))
    def contrasted(x, y, index): return contrast(head(net(x).embedding), y.repeat(2), 0.1)
    net.train()
    losses = train_plainly(net, images, 0, EPOCHS, 64, RISE, contrasted, inputs=both, parameters=[
        p for p in [*net.parameters(), *head.parameters()] if not any(p is q for q in net.classifier.parameters())])
    net.eval()
    def classifier_alone(x, y, index):
        with torch.no_grad(): z = net(x).embedding
        return F.cross_entropy(net.classifier(z), y)
    return net, losses + train_plainly(net, images, 0, EPOCHS, 64, risen_and_fallen(0.5, 0), classifier_alone, first=1000,
                                       parameters=list(net.classifier.parameters()), decay=0.0)


def test_lee2025_trains_a_teacher_by_contrast_and_distills_it(lee2025):
    teacher, losses = supcon("resnet8", lee2025.images)
    lee2025.agrees(lee2025.run("teacher", "teacher", "supcon"), teacher, losses, CONTRASTED, 20)
    lee2025.agrees(lee2025.run("distilled", "kd", "supcon"),
                   *taught("resnet8_w4", teacher, lee2025.images, EPOCHS, 64, RISE, weight=1.0, T=2.0), CONTRASTED, 20)


# the CRD benchmark: 0.05, a tenth after 150, 180 and 210 of 240 epochs, batch 64, no Nesterov; kd 0.9 beside a tenth of cross-entropy, T = 4

def test_the_crd_benchmark_trains_and_distills(tmp_path):
    tried = Tried(CRDBenchmark, "ckd_table1", tmp_path, loss="kd", protocol="matched", epochs=4)
    recipe = (tried.images, 4, 64, cut(0.05, 4, (2, 3, 4)), False)
    teacher, losses = alone("resnet8", *recipe)
    tried.agrees(tried.run("teacher", "teacher"), teacher, losses)
    tried.agrees(tried.run("student", "student"), *alone("resnet8_w4", *recipe))
    tried.agrees(tried.run("distilled", "kd"), *taught("resnet8_w4", teacher, *recipe, share=0.1, weight=0.9))


# hakd: batch 32, 0.05 after a rise over a fifth, falling linearly; kd 0.9 beside a tenth of cross-entropy, T = 4

def test_hakd_trains_and_distills(tmp_path):
    tried = Tried(HAKD, "hakd_table1", tmp_path, loss="kd", corruption="none", teacher="cnn", cnn="resnet8", student="resnet8_w4")
    recipe = (tried.images, EPOCHS, 32, risen_and_fallen(0.05, 0.2))
    teacher, losses = alone("resnet8", *recipe)
    tried.agrees(tried.run("teacher", "teacher"), teacher, losses)
    tried.agrees(tried.run("student", "student"), *alone("resnet8_w4", *recipe))
    tried.agrees(tried.run("distilled", "kd"), *taught("resnet8_w4", teacher, *recipe, share=0.1, weight=0.9))


# what the tolerance tells apart

def another_epochs(images, seed, epoch, index): return shown(images, seed, epoch + 1, index)


@pytest.mark.parametrize("wrong", ["constant rate", "cosine", "no rise", "no momentum ahead", "views", "first", "batch"])
def test_whatever_is_done_otherwise_is_far_outside_the_tolerance(lee2025, wrong):
    images, net = lee2025.images, begun("resnet8_w4", lee2025.images, 0)
    rate = {"constant rate": lambda done: 0.1, "cosine": cosine(0.1), "no rise": risen_and_fallen(0.1, 0)}.get(wrong, RISE)
    train_plainly(net, images, 0, EPOCHS, 32 if wrong == "batch" else 64, rate, classified(net), nesterov=wrong != "no momentum ahead",
                  first=wrong == "first", inputs=another_epochs if wrong == "views" else shown)
    assert distance(net, lee2025.left(lee2025.run("student", "student")), begun("resnet8_w4", images, 0)) > 2 * CLOSE


def test_rounding_is_far_inside_the_tolerance(lee2025):
    net = alone("resnet8_w4", lee2025.images, EPOCHS, 64, RISE)[0]
    assert distance(net, lee2025.left(lee2025.run("student", "student")), begun("resnet8_w4", lee2025.images, 0)) < CLOSE / 3
