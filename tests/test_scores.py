"The strips of a contrast against the whole matrix: value and gradient, whatever asks for a gradient."
import pytest
import torch
import torch.nn.functional as F

import kdnb.scores as module
from kdnb.scores import SMALL, STRIP, StripMean, mean_contrast, pair_cross_entropy


def vectors(n, m, d=5):
    made = torch.Generator().manual_seed(n + m)
    return [torch.randn(size, d, dtype=torch.float64, generator=made).requires_grad_() for size in (n, m)]


def plain(a, b, c): return torch.stack([torch.log(torch.exp(c * (b @ row)).sum()) for row in a]).mean()


@pytest.mark.parametrize("n,m", [(1, 1), (1, 7), (3, 2), (STRIP - 1, 4), (STRIP, 9), (STRIP + 1, 5), (2 * STRIP, 3), (2 * STRIP + 17, 200)])
@pytest.mark.parametrize("c", [1.0, 0.3, 4.0])
def test_strips_give_the_value_and_gradients_of_the_matrix(n, m, c):
    a, b = vectors(n, m)
    wanted = plain(a, b, c)
    torch.testing.assert_close(StripMean.apply(a, b, c), wanted)
    for own, expected in zip(torch.autograd.grad(3 * StripMean.apply(a, b, c), (a, b)), torch.autograd.grad(3 * wanted, (a, b))):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_is_given_to_whoever_asks(which):
    pair = vectors(STRIP + 3, 6)
    other = pair[1 - which].detach()
    given = (pair[0], other) if which == 0 else (other, pair[1])
    found, = torch.autograd.grad(StripMean.apply(*given, 2.0), pair[which])
    torch.testing.assert_close(found, torch.autograd.grad(plain(*given, 2.0), pair[which])[0])


def test_a_second_derivative_is_refused_and_not_wrong():
    a, b = vectors(4, 4)
    first, = torch.autograd.grad(StripMean.apply(a, b, 1.0)**2, a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): first.sum().backward()


def test_scores_of_any_size_stay_finite():
    a, b = (1000 * x.detach() for x in vectors(STRIP + 1, 9))
    torch.testing.assert_close(StripMean.apply(a, b, 1.0), (a @ b.T).logsumexp(1).mean())


@pytest.mark.parametrize("n", [SMALL - 1, SMALL, SMALL + 1])
def test_the_contrast_is_the_mean_less_the_pull_however_many_anchors(n):
    a, b = vectors(n, n)
    pull = torch.randn(n, dtype=torch.float64)
    torch.testing.assert_close(mean_contrast(a, b, pull, 0.5), (0.5 * a @ b.T).logsumexp(1).mean() - pull.mean())
    torch.testing.assert_close(mean_contrast(a, b, pull), (a @ b.T).logsumexp(1).mean() - pull.mean())
    torch.testing.assert_close(pair_cross_entropy(a, b, 0.5), F.cross_entropy(0.5 * a @ b.T, torch.arange(n)))
    torch.testing.assert_close(pair_cross_entropy(a, b), F.cross_entropy(a @ b.T, torch.arange(n)))


def test_the_matrix_is_made_up_to_512_anchors_and_never_beyond(monkeypatch):
    sizes = []
    real = StripMean.apply
    monkeypatch.setattr(module.StripMean, "apply", lambda a, b, c: sizes.append(len(a)) or real(a, b, c))
    for n in (512, 513):
        a, b = vectors(n, 3)
        mean_contrast(a, b, torch.zeros(n, dtype=torch.float64))
    assert sizes == [513]
    seen, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *pair, out: seen.append(tuple(out.shape)) or mm(*pair, out=out))
    context = type("Context", (), {"needs_input_grad": (True, True, False), "save_for_backward": lambda *_: None})()
    StripMean.forward(context, *(x.detach() for x in vectors(300, 7)), 1.0)
    assert seen == [(128, 7), (128, 7), (44, 7)]
