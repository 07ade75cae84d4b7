"The losses of lee2025 and kd equal loops written from their equations, in value and gradient, in float64."
import itertools
import math

import pytest
import torch

from kdnb.checks import outputs
from kdnb.contract import Out
from kdnb.registry import losses


def dot(a, b): return sum(x * y for x, y in zip(a, b))


def normalised(rows, wanted):
    return [[x / dot(row, row)**0.5 for x in row] for row in rows] if wanted else rows


def squared(a, b): return sum((x - y)**2 for x, y in zip(a, b))


def mse(s, t, y, tau): return sum(squared(a, b) for a, b in zip(t, s)) / len(s)


def norm(s, t, y, tau): return mse(normalised(s, True), normalised(t, True), y, tau)


def cosine(s, t, y, tau): return -sum(dot(a, b) for a, b in zip(normalised(t, True), normalised(s, True))) / len(s)


def gram(s, t, y, tau):
    pairs = itertools.product(range(len(s)), repeat=2)
    return sum((dot(t[i], t[j]) - dot(s[i], s[j]))**2 for i, j in pairs) / len(s)**2


def supcon(s, t, y, tau):
    total = 0
    for i, anchor in enumerate(t):
        positives = [j for j in range(len(s)) if y[j] == y[i]]
        below = sum(torch.exp(dot(anchor, other) / tau) for other in s)
        total += -sum(torch.log(torch.exp(dot(anchor, s[p]) / tau) / below) for p in positives) / len(positives)
    return total / len(t)


CASES = [(f, on, n) for f in (mse, norm, cosine, gram, supcon) for on in ("logits", "embedding")
         for n in ("none", "teacher", "student", "both") if f is not gram or n in ("none", "both")]


@pytest.mark.parametrize("batch,classes", [(7, 5), (24, 3)])
@pytest.mark.parametrize("loop,on,normalize", CASES)
def test_loss_equals_a_loop_from_the_equation(loop, on, normalize, batch, classes):
    student, teacher = outputs(batch, classes, width=4, seed=2), outputs(batch, classes, width=4, seed=3)
    y = torch.arange(batch) % classes if batch > 7 else torch.tensor([0, 1, 1, 0, 4, 0, 2])
    tau = 0.7
    s, t = getattr(student, on), getattr(teacher, on)
    def rows(x, side): return normalised([[v for v in row] for row in x], normalize in (side, "both"))
    expected = loop(rows(s, "student"), rows(t.detach(), "teacher"), y.tolist(), tau)
    term = losses.build(loop.__name__, on=on, normalize=normalize, **({"tau": tau} if loop is supcon else {}))
    value = term(student, teacher, y, torch.arange(batch))
    assert abs(value - expected) < 1e-9 * max(1, abs(expected))
    gradient, wanted = torch.autograd.grad(value, s)[0], torch.autograd.grad(expected, s)[0]
    assert (gradient - wanted).abs().max() < 1e-9 * max(1, wanted.abs().max())


def test_kd_equals_a_loop_from_the_equation():
    student, teacher, T = outputs(6, seed=2), outputs(6, seed=3), 3.0
    def soft(row): return [torch.exp(v / T) / sum(torch.exp(w / T) for w in row) for v in row]
    expected = T**2 * sum(p * torch.log(p / q) for a, b in zip(teacher.logits.detach(), student.logits)
                          for p, q in zip(soft(a), soft(b))) / 6
    value = losses.build("kd", T=T)(student, teacher, torch.arange(6) % 5, torch.arange(6))
    assert abs(value - expected) < 1e-12
    assert torch.autograd.grad(value, student.logits)[0].allclose(torch.autograd.grad(expected, student.logits)[0], rtol=0, atol=1e-12)


def test_gram_is_right_however_it_is_computed():
    for batch, width in ((4, 9), (40, 3)):
        s, t = torch.randn(batch, width), torch.randn(batch, width)
        t[:] = s + 1e-3 * t  # close together, where a difference of large sums would lose its digits
        out = [Out(x, x) for x in (s, t)]
        S, T = s.double(), t.double()
        exact = ((T @ T.T - S @ S.T)**2).sum() / batch**2
        value = losses.build("gram")(*out, torch.zeros(batch).long(), torch.arange(batch))
        assert abs(value - exact) < 1e-4 * exact


def test_supcon_bottoms_at_its_floor():
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    apart = 100 * torch.eye(3, dtype=torch.float64)[y]
    out = Out(apart, apart)
    value = losses.build("supcon", normalize="none", tau=1.0)(out, out, y, y)
    assert abs(value - (3 * math.log(3) + 2 * math.log(2)) / 6) < 1e-9
