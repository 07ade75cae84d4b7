"""Losses and networks against numbers from running the authors' or the benchmark's own code: golden/NAME.json holds the numbers, with repository,
commit and file; `scale` is the constant by which the official value differs from ours by definition."""
import json
from pathlib import Path

import pytest
import torch

from kdnb.checks import outputs
from kdnb.registry import losses, models

GOLDEN = Path(__file__).with_name("golden")
LOSSES = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json")) if path.stem != "models"}
CASES = [(name, i) for name, golden in LOSSES.items() for i in range(len(golden["cases"]))]
MODELS = json.loads((GOLDEN/"models.json").read_text())


def fill(parameters):
    for i, p in enumerate(parameters):
        p.data = (torch.arange(p.numel(), dtype=p.dtype) * 0.37 + i).sin().view_as(p) * 0.2


def leaf(out, name):
    field, _, number = name.partition(".")
    return getattr(out, field)[int(number)] if number else getattr(out, field)


@pytest.mark.parametrize("name,number", CASES)
def test_loss_equals_the_released_code(name, number):
    case = LOSSES[name]["cases"][number]
    student, teacher = outputs(**case["student"]), outputs(**case["teacher"])
    y = torch.tensor(case["labels"])
    torch.manual_seed(0)
    term = losses.build(name, **case["options"])
    term.prepare(student, teacher, y)
    fill(term.parameters())
    official = getattr(term, case.get("stage", "__call__"))
    value = case.get("scale", 1.0) * official(student, teacher, y, torch.arange(len(y)))
    assert abs(value - case["value"]) <= 1e-6 * max(1, abs(case["value"]))
    names = list(case["gradients"])
    if not names: return  # a first stage of the teacher's side alone
    for wanted, gradient in zip(case["gradients"].values(), torch.autograd.grad(value, [leaf(student, n) for n in names])):
        size = max(1e-3, wanted["norm"])
        assert abs(gradient.sum() - wanted["sum"]) <= 1e-6 * size * gradient.numel()**0.5
        assert abs(gradient.norm() - wanted["norm"]) <= 1e-6 * size
        assert (gradient.flatten()[:5] - torch.tensor(wanted["first"], dtype=gradient.dtype)).abs().max() <= 1e-6 * size


def test_golden_numbers_name_their_source():
    for golden in [*LOSSES.values(), *MODELS.values()]:
        assert "/" in golden["source"] and len(golden["commit"]) == 40 and golden["file"]


@pytest.mark.parametrize("name", MODELS)
def test_network_equals_the_released_code(name):
    golden = MODELS[name]
    net = models.build(name, classes=golden.get("classes", 100)).double().eval()
    assert sum(p.numel() for p in net.parameters()) == golden["parameters"]
    fill(net.parameters())
    x = (torch.arange(2 * 3 * 32 * 32, dtype=torch.float64) * 0.01).sin().view(2, 3, 32, 32)
    with torch.no_grad(): logits = net(x).logits
    size = logits.abs().max()
    assert abs(logits.sum() - golden["logits_sum"]) <= 1e-8 * size * logits.numel()
    assert (logits.flatten()[:5] - torch.tensor(golden["logits_first"], dtype=logits.dtype)).abs().max() <= 1e-8 * size
