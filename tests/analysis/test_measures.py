"Similarity of classes against probability, and accuracy under attack: against loops, and run as a user runs them."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from kdnb.analysis.adversarial import ATTACKS, KEPT, SHARE, attack_numbers, attacked, under
from kdnb.analysis.classes import ACROSS, APART, RANKS, WITHIN, class_numbers, class_probability, class_similarity, from_weights, rank_agreement, wolf_minus_car
from kdnb.analysis.compare import Compared
from kdnb.analysis.small import plain
from kdnb.contract import Out
from kdnb.data.images import load_images
from kdnb.errors import refusal
from kdnb.report.measures import read_measures
from notebooks import papermill

DIGITS = load_images("digits").split(validation=200, train=100, test=60)


class Linear(nn.Module):
    "A network of one layer, whose gradient is known."
    def __init__(self, width=6, seed=0, scale=1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.out = nn.Linear(64, width), nn.Linear(width, 10)
        self.scale = scale

    def forward(self, x):
        h = self.embed(x.flatten(1))
        return Out(logits=self.scale * self.out(h), embedding=h, maps=())


def test_numbers_of_classes_equal_loops():
    c = Compared({"method": "x"}, Linear(seed=0).eval(), Linear(seed=1).eval(), "")
    x, y = plain(DIGITS.test_x, DIGITS), DIGITS.test_y
    with torch.no_grad(): s, t = c.student(x).embedding.double(), c.teacher(x)
    p = (t.logits.double() / 4).softmax(1)
    near, likely = np.zeros((10, 10)), np.zeros((10, 10))
    for a in range(10):
        for b in range(10):
            pairs = [F.cosine_similarity(s[i], t.embedding[j].double(), dim=0).item() for i in range(60) for j in range(60) if y[i] == a and y[j] == b]
            near[a, b], likely[a, b] = np.mean(pairs), p[y == a, b].mean()
    wrong = [[b for b in range(10) if b != a] for a in range(10)]
    ranks = np.mean([spearmanr(near[a, wrong[a]], likely[a, wrong[a]]).statistic for a in range(10)])
    gap = np.mean([near[a, max(wrong[a], key=lambda b: likely[a, b])] - near[a, min(wrong[a], key=lambda b: likely[a, b])] for a in range(10)])
    found = class_numbers(c, DIGITS)
    assert math.isclose(found[RANKS, ACROSS], ranks, abs_tol=1e-6) and math.isclose(found[APART, ACROSS], gap, abs_tol=1e-6)
    top = [max(likely[a, wrong[a]]) for a in range(10)]
    least = [min(likely[a, wrong[a]]) for a in range(10)]
    assert math.isclose(found["what the weights alone can add", "τ = 0.07"], np.mean(0.07 * np.log((1 - np.array(least)) / (1 - np.array(top)))), abs_tol=1e-6)


def test_a_student_of_another_width_is_asked_in_its_own_space_alone():
    narrow = Compared({"method": "x"}, Linear(width=4).eval(), Linear().eval(), "")
    assert {place for _, place in class_numbers(narrow, DIGITS)} == {WITHIN, "τ = 0.07"}
    assert "one width" in refusal(class_similarity, torch.zeros(4, 3), torch.zeros(4, 5), torch.arange(4), 4)


def test_numbers_of_classes_do_not_depend_on_the_order_of_classes_or_images():
    torch.manual_seed(0)
    s, t, logits, y = torch.randn(60, 6), torch.randn(60, 6), torch.randn(60, 5), torch.arange(60) % 5
    def numbers(s, t, logits, y): return [f(class_similarity(s, t, y, 5), class_probability(logits, y)) for f in (rank_agreement, wolf_minus_car)] + [from_weights(class_probability(logits, y))]
    order, names = torch.randperm(60), torch.tensor([3, 0, 4, 1, 2])
    moved = numbers(s[order], t[order], logits[order][:, names.argsort()], names[y[order]])
    assert np.allclose(moved, numbers(s, t, logits, y))


def test_attacks_on_a_linear_network_are_the_best_there_are():
    "Of two classes, the change of a pixel that costs most is known: its sign is that of the difference of two rows of weights."
    net = Linear(seed=3).eval()
    weights = (net.out.weight @ net.embed.weight).detach()
    x, y = plain(DIGITS.test_x, DIGITS), DIGITS.test_y
    with torch.no_grad(): y = net(x).logits.argmax(1)   # all right, so that all can be lost
    rival = torch.where(y == 0, 1, 0)
    two = Linear(seed=3).eval()
    def margin(images): return ((weights[y] - weights[rival]) * images.flatten(1)).sum(1)
    low = attacked(net, x, y, DIGITS, 8, 1)
    assert (margin(low) < margin(x)).double().mean() > 0.9
    losses = {steps: F.cross_entropy(net(attacked(net, x, y, DIGITS, 8, steps)).logits, y).item() for steps in (0, 1, 10, 40)}
    assert losses[0] < losses[1] <= losses[10] + 1e-3 and losses[10] <= losses[40] + 1e-3
    assert two(x).logits.allclose(net(x).logits)


@pytest.mark.parametrize("steps", [0, 1, 10])
@pytest.mark.parametrize("eps", [0.5, 4, 300])
def test_an_attack_stays_in_its_box_and_among_pictures(eps, steps):
    x, y = plain(DIGITS.test_x, DIGITS), DIGITS.test_y
    moved = attacked(Linear().eval(), x, y, DIGITS, eps, steps)
    pixels, before = (v * DIGITS.std[0] + DIGITS.mean[0] for v in (moved, x))
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5 and (pixels - before).abs().max() < eps / 255 + 1e-5


def test_a_network_that_is_too_sure_hides_no_gradient():
    "In single precision the softmax of large logits is exact, its gradient zero, and an attack that uses it finds nothing."
    x, y = plain(DIGITS.test_x, DIGITS), DIGITS.test_y
    nets = [Linear(seed=3, scale=scale).eval() for scale in (1.0, 200.0)]
    with torch.no_grad(): y = nets[0](x).logits.argmax(1)
    left = [under(net, x, y, DIGITS, 8, 10).double().mean() for net in nets]
    assert left[0] < 0.9 and left[1] < 0.8


def test_shares_of_all_images_and_of_the_right_ones():
    c = Compared({"method": "x"}, Linear(seed=5).eval(), Linear().eval(), "")
    found = attack_numbers(c, DIGITS, [2.0])
    whole = float(found[SHARE, "no attack"])
    x, y = plain(DIGITS.test_x, DIGITS), DIGITS.test_y
    for name, steps in ATTACKS.items():
        still = under(c.student, x, y, DIGITS, 2.0, steps)
        with torch.no_grad(): before = c.student(x).logits.argmax(1) == y
        assert math.isclose(found[f"{SHARE} {name}", "eps 2/255"], still.double().mean())
        if whole: assert math.isclose(found[f"{KEPT} {name}", "eps 2/255"], still[before].double().mean())


def test_both_tables_run_and_write_their_measures(tmp_path):
    common = {"data": "digits", "epochs": "1", "seeds": "1", "device": "cpu", "reports": "reports"}
    code, said = papermill(tmp_path, "supcrd_classes", **common, loss="supcrd,supcrd_lw@variant=a", pair="resnet14-resnet8")
    assert code == 0, said
    found = read_measures(tmp_path/"reports/supcrd_classes")
    assert {RANKS, APART} <= set(found.measure) and {"teacher", "student", "supcrd", "supcrd_lw@variant=a"} <= set(found.method)
    assert found.value[found.measure == RANKS].between(-1, 1).all() and (tmp_path/"reports/supcrd_classes/fig_ranks.png").stat().st_size > 5000
    small = {"transformer": "vit_tiny_4@image_size=8", "cnn": "resnet14", "student": "resnet8", "loss": "hint", "corruption": "none", "strengths": "4", "count": "40"}
    code, said = papermill(tmp_path, "hakd_noise", **common | small)
    assert code == 0, said
    found = read_measures(tmp_path/"reports/hakd_noise")
    assert {f"{KEPT} {name}" for name in ATTACKS} <= set(found.measure) and {"hint", "hint from cnn", "untrained"} <= set(found.method)
    code, said = papermill(tmp_path, "hakd_noise", **common | small | {"strengths": "two"})
    assert code and "strengths='two' are not numbers above 0 and up to 255" in said
