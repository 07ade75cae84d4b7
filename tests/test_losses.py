"Every registered loss keeps the contract; those of lee2025 equal loops written from its equations, in value and gradient, in float64."
import itertools
import math
import timeit

import pytest
import torch
from torch import nn

from kdnb import errors, registry
from kdnb.analysis.cka import StreamedCKA, debiased_cka
from kdnb.checks import check_loss, check_model, check_network, outputs, places, ready, shown, stages, wrong_batches
from kdnb.contract import Network, Out, VectorTerm
from kdnb.data.images import load_images
from kdnb.errors import refusal
from kdnb.models.pretrained import network
from kdnb.registry import InputError, Registry, losses, models


@pytest.mark.parametrize("name", losses.names())
def test_loss_keeps_the_contract(name):
    known = losses.options(name)
    check_loss(name)
    if "on" in known: check_loss(name, on="embedding")
    for normalize in ("none", "teacher", "student", "both") if "normalize" in known else ():
        try: losses.build(name, normalize=normalize)
        except InputError: continue
        check_loss(name, normalize=normalize)


@pytest.mark.parametrize("name", models.names())
def test_model_keeps_the_contract(name): check_model(name, **({"image_size": 32} if "image_size" in models.options(name) else {}))


STUDENT, TEACHER, Y, INDEX = outputs(6), outputs(6, seed=1), torch.tensor([0, 1, 2, 0, 1, 4]), torch.arange(6)
WRONG = list(wrong_batches(STUDENT, TEACHER, Y, INDEX, ("maps",)))


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_a_batch_is_refused_in_one_sentence(name, what):
    term, _ = ready(name, {}, STUDENT, TEACHER, Y)
    batch = wrong_batches(STUDENT, TEACHER, Y, INDEX, term.needs)[what]
    for loss in stages(term):
        sentence = refusal(loss, *batch)
        assert sentence and sentence.endswith(".") and "\n" not in sentence and len(sentence) < 160


@pytest.mark.parametrize("name", losses.names())
def test_a_refusal_leaves_a_term_as_it_was(name):
    term, twin = (ready(name, {}, STUDENT, TEACHER, Y)[0] for _ in range(2))
    state = {k: v.clone() for k, v in term.state_dict().items()}
    for batch in wrong_batches(STUDENT, TEACHER, Y, INDEX, term.needs).values():
        for loss in stages(term): assert refusal(loss, *batch)
    assert all(v.equal(state[k]) or v.isnan().all() for k, v in term.state_dict().items())
    for _ in range(2):
        values = [[loss(STUDENT, TEACHER, Y, INDEX).item() for loss in stages(one)] for one in (term, twin)]
        assert values[0] == values[1] and all(map(math.isfinite, values[0]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", losses.names())
def test_labels_and_positions_of_any_integer_type_are_one_batch(name, dtype):
    values = [[loss(STUDENT, TEACHER, Y.to(d), INDEX.to(d)).item() for loss in stages(ready(name, {}, STUDENT, TEACHER, Y)[0])]
              for d in (dtype, torch.int64)]
    assert values[0] == values[1]


@pytest.mark.parametrize("name", losses.names())
def test_a_nan_in_what_a_loss_looks_at_is_a_nan_in_the_loss(name):
    term, _ = ready(name, {}, STUDENT, TEACHER, Y)
    for side, out in enumerate((STUDENT, TEACHER)):
        looked = []
        for place in places(out, (term.student_needs or term.needs) if side == 0 else term.needs):
            for stage in range(len(stages(term))):
                def loss(s, t): return stages(ready(name, {}, STUDENT, TEACHER, Y)[0])[stage](s, t, Y, INDEX)
                looked.append(shown(loss, [STUDENT, TEACHER], side, place))
                assert looked[-1] is not False, place
        assert any(looked)


def test_the_released_broadcasts_are_gone():
    "What was computed before: a teacher of one row against six images, dkd without the sixth image, supcrd's table of labels, a sum over no maps."
    one, bare = Out(TEACHER.logits[:1], TEACHER.embedding[:1], tuple(m[:1] for m in TEACHER.maps)), Out(STUDENT.logits, STUDENT.embedding)
    assert "length 1" in refusal(losses.build("mse"), STUDENT, one, Y, INDEX)
    assert "length" in refusal(losses.build("dkd"), STUDENT, TEACHER, Y[:5], INDEX)
    assert "[6, 1]" in refusal(losses.build("supcrd"), STUDENT, TEACHER, Y[:, None], INDEX)
    for name in ("at", "nst"): assert "maps" in refusal(losses.build(name), bare, bare, Y, INDEX)


def test_crd_refuses_what_its_data_set_does_not_have_and_goes_on():
    terms = [ready("crd", {"K": 3}, STUDENT, TEACHER, Y)[0] for _ in range(2)]
    for _ in range(3):
        assert "position 6" in refusal(terms[0], STUDENT, TEACHER, Y, INDEX + 1)
        assert "has the label" in refusal(terms[0], STUDENT, TEACHER, Y.flip(0), INDEX)
        values = [term(STUDENT, TEACHER, Y, INDEX).item() for term in terms]
        assert values[0] == values[1] and math.isfinite(values[0])


def test_numbers_on_a_gpu_are_read_in_the_first_call_alone(monkeypatch):
    "A tensor that says it is on a GPU stands in for one: after the first call nothing is read from it."
    class Elsewhere(torch.Tensor):
        is_cpu = property(lambda self: False)
    y, index, term = Y.as_subclass(Elsewhere), INDEX.as_subclass(Elsewhere), losses.build("kd")
    assert "label" in refusal(term.checked, STUDENT, TEACHER, y + 1, index)
    term.checked(STUDENT, TEACHER, y, index)
    def read(*given): raise AssertionError("read again")
    monkeypatch.setattr(type(term), "check_values", read)
    term.checked(STUDENT, TEACHER, y, index)
    assert refusal(term.checked, STUDENT, TEACHER, y[:, None], index)


def test_the_check_is_cheap():
    s, t, y = outputs(64, classes=100, dtype=torch.float32), outputs(64, classes=100, seed=1, dtype=torch.float32), torch.arange(64)
    term = losses.build("kd")
    assert min(timeit.repeat(lambda: term.checked(s, t, y, y), number=100, repeat=10)) / 100 < 2e-4  # seconds; 2e-5 where nothing else runs


def test_a_term_that_trusts_its_batch_or_hides_a_nan_is_found():
    class Trusting(VectorTerm):
        def checked(self, *batch): return batch
        def loss(self, s, t, y): return (s - t).square().mean()

    class Hiding(VectorTerm):
        def loss(self, s, t, y): return torch.where(t > 0, s, -s).mean()
    for faulty, said in ((Trusting, "not refused"), (Hiding, "does not show")):
        losses.register("faulty")(type("Faulty", (faulty,), {"__module__": "__main__"}))
        try:
            with pytest.raises(AssertionError, match=said): check_loss("faulty")
        finally: del losses._factories["faulty"]


def test_hint_and_fitnet_are_one_loss():
    assert losses.get("hint") is losses.get("fitnet") and losses.canonical("hint") == losses.canonical("fitnet") == "fitnet"
    assert losses.options("hint") == losses.options("fitnet")
    values = [ready(name, {}, STUDENT, TEACHER, Y)[0](STUDENT, TEACHER, Y, INDEX).item() for name in ("hint", "fitnet")]
    assert values[0] == values[1]


def test_a_registry_of_one_module_and_the_errors_of_before():
    assert Registry("error", "kdnb.errors").names() == []
    for name in ("InputError", "unknown", "one_of", "positive", "not_negative", "whole"):
        assert getattr(registry, name) is getattr(errors, name)


class Whole(Network):
    def __init__(self, classes=10, channels=3):
        super().__init__()
        self.width, self.classifier = channels, nn.Linear(channels, classes)

    def forward(self, x):
        embedding = x.mean((2, 3))
        return Out(self.classifier(embedding), embedding, (x,), (x,))


def test_every_network_is_a_network():
    for name in models.names():
        with torch.device("meta"): net = models.build(name)
        assert isinstance(net, Network) and isinstance(net.width, int) and net.classifier.weight.shape[1] == net.width
    images = load_images("digits")
    check_network(network("resnet8@size=16", images), torch.randn(4, 1, 8, 8), 10)


@pytest.mark.parametrize("fault,said", [
    (lambda net: delattr(net, "width"), "no `width`"), (lambda net: delattr(net, "classifier"), "no `classifier`"),
    (lambda net: setattr(net.classifier, "bias", None), "without bias"), (lambda net: setattr(net, "width", 5), r"should be \(4, 5\)"),
    (lambda net: net.register_forward_hook(lambda net, x, out: out._replace(maps=())), "no `maps`"),
    (lambda net: net.register_forward_hook(lambda net, x, out: out._replace(before=())), "`before`"),
    (lambda net: net.register_forward_hook(lambda net, x, out: out._replace(logits=2 * out.logits)), "not those of the embedding")])
def test_what_a_network_lacks_is_said_in_one_sentence(fault, said):
    check_network(Whole(), torch.randn(4, 3, 8, 8), 10)
    net = Whole()
    fault(net)
    with pytest.raises(AssertionError, match=said) as caught: check_network(net, torch.randn(4, 3, 8, 8), 10)
    assert "\n" not in str(caught.value)
    with pytest.raises(AssertionError, match="not a kdnb.contract.Network"): check_network(nn.Linear(2, 2), torch.randn(4, 2), 2)


def test_cka_refuses_other_lengths():
    x = torch.randn(9, 3)
    assert "9 and 8" in refusal(debiased_cka, x, x[:8]) and "9 and 8" in refusal(StreamedCKA().add, x, x[:8])
    assert (debiased_cka(x, x) - 1).abs() < 1e-9


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


def test_options_and_names_are_refused_in_one_sentence():
    for wrong in (lambda: losses.build("grm"), lambda: losses.build("gram", normalise="both"), lambda: losses.build("mse", on="logit"),
                  lambda: losses.build("supcon", tau=0), lambda: losses.build("kd", T="4"), lambda: models.build("resnet19"),
                  lambda: losses.build("gram", normalize="student")):
        with pytest.raises(InputError) as caught: wrong()
        assert "\n" not in str(caught.value)
