"Forms of a loss in which a paper and its code differ: each equals what was written."
import math

import pytest
import torch

from kdnb.checks import outputs
from kdnb.errors import refusal
from kdnb.losses.dcd import factor
from kdnb.registry import losses

STUDENT, TEACHER, Y, INDEX = outputs(7), outputs(7, width=12, seed=1), torch.arange(7) % 3, torch.arange(7)


@pytest.mark.parametrize("tau, paper, code", [(-3.0, 1.0, math.exp(-3)), (0.0, 1.0, 1.0), (1.0, math.e, math.e), (3.0, math.exp(3), 10.0), (50.0, math.exp(10), 10.0)])
def test_the_papers_clamp_of_tau_has_both_ends_and_the_released_one_the_upper(tau, paper, code):
    x = torch.tensor(tau, dtype=torch.float64)
    assert math.isclose(factor(x, "tau"), paper) and math.isclose(factor(x, "scale"), code)


def test_a_factor_that_starts_outside_its_clamp_is_refused_in_one_sentence():
    for options in ({"scale": 0.5, "clamp": "tau"}, {"scale": 11.0}, {"scale": 3e4, "clamp": "tau"}):
        sentence = refusal(losses.build, "dcd", **options)
        assert f"scale={options['scale']} starts outside its clamp" in sentence and len(sentence) < 300
    for options in ({"scale": 0.5}, {"scale": 1.0, "clamp": "tau"}, {"scale": 0.5, "clamp": "tau", "trained": False}):
        losses.build("dcd", **options)


def kernel(x, y, gamma, order):
    "The series of the Gaussian kernel, term by term."
    cosine = sum(a * b for a, b in zip(x, y)) / (sum(a * a for a in x) * sum(b * b for b in y))**0.5
    return sum(math.exp(-2 * gamma) * (2 * gamma * cosine)**p / math.factorial(p) for p in range(order + 1))


@pytest.mark.parametrize("gamma, order", [(0.4, 2), (1.0, 5), (0.1, 1)])
def test_correlation_congruence_as_its_paper_has_it_equals_a_loop(gamma, order):
    s, t = STUDENT.embedding.tolist(), TEACHER.embedding.tolist()
    expected = sum((kernel(s[i], s[j], gamma, order) - kernel(t[i], t[j], gamma, order))**2 for i in range(7) for j in range(7)) / 49
    term = losses.build("cc", form="kernel", gamma=gamma, order=order)
    term.prepare(STUDENT, TEACHER)
    assert math.isclose(term(STUDENT, TEACHER, Y, INDEX).item(), expected, rel_tol=1e-9) and not list(term.parameters())


@pytest.mark.parametrize("options", [{"width": 64}, {"pairs": "all"}])
def test_the_kernel_form_has_no_options_of_the_other_form(options):
    assert "neither width nor pairs" in refusal(losses.build, "cc", form="kernel", **options)
