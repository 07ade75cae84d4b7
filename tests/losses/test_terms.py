"Every registered loss keeps the contract and refuses, in one sentence, what is not a batch."
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdnb import errors, registry
from kdnb.checks import check_loss, outputs, places, ready, shown, stages, wrong_batches
from kdnb.contract import Out, VectorTerm
from kdnb.errors import refusal
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
    asked = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asked.append(function)
            return function(*args, **kwargs or {})

    term = losses.build("kd")
    with Counting(): term.checked(s, t, y, y)
    assert len(asked) == 6, "the least and the largest label and position, and reading them: no work on what networks say"


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


def test_options_and_names_are_refused_in_one_sentence():
    for wrong in (lambda: losses.build("grm"), lambda: losses.build("gram", normalise="both"), lambda: losses.build("mse", on="logit"),
                  lambda: losses.build("supcon", tau=0), lambda: losses.build("kd", T="4"), lambda: models.build("resnet19"),
                  lambda: losses.build("gram", normalize="student")):
        with pytest.raises(InputError) as caught: wrong()
        assert "\n" not in str(caught.value)
