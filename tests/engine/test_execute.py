"The small parts that an execution is made of: what work costs, what is said, what shares a batch."
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
import torch

import kdnb.engine.execute as module
from kdnb.contract import Out
from kdnb.data.images import load_images
from kdnb.data.views import Views
from kdnb.engine.execute import (cache_of, asked_again, cache_path, costs, enumerate_views, epochs_asked, expected, groups, image_cost, line, members, out_of_memory, pages_for,
                                 record_of, summary_line, too_large, training, work)
from kdnb.engine.learner import Learner, is_unsafe, laid_out
from kdnb.engine.optimisers import optimisers
from kdnb.engine.progress import Progress
from kdnb.engine.run import Entry, Phase, Plan, Run, Weighted, distill, optimised, staged, weighted, worded
from kdnb.engine.teacher_cache import EVERY, TeacherCache, answer_bytes, as_taught, every_view, halved, load_cache, save_cache
from kdnb.engine.train import Teachers
from kdnb.registry import InputError
from kdnb.store import Store

IMAGES = load_images("digits").split(validation=10, train=24, test=10)
PHASE = Phase("classify", 3, 8, 0.05)
RUN = Run("resnet8_w4", "ce", (PHASE,), IMAGES.identity, 0)
TAUGHT = replace(RUN, terms=(Weighted("kd"),), teacher=replace(RUN, net="resnet8"))
PEERS = replace(RUN, terms=(Weighted("dml"),), peer="resnet8")
COST = {"resnet8_w4": 10, "resnet8": 100}


def test_an_image_costs_three_passes_of_all_that_learn_and_one_of_the_teacher():
    assert [image_cost(RUN, kind, COST) for kind in ("classify", "initial", "contrast", "linear")] == [30, 30, 60, 10]
    assert [image_cost(TAUGHT, kind, COST) for kind in ("classify", "linear")] == [130, 110] and image_cost(PEERS, "classify", COST) == 330


def test_the_work_of_a_run_is_that_of_its_phases():
    phases = Phase("contrast", 2, 8, 0.1), Phase("linear", 5, 8, 0.1)
    assert work(RUN, IMAGES, COST) == 24 * 3 * 30 and work(replace(RUN, phases=phases), IMAGES, COST) == 24 * (2 * 60 + 5 * 10)


def test_costs_are_counted_once_for_every_network():
    found = costs([RUN, TAUGHT, PEERS], IMAGES)
    assert list(found) == ["resnet8", "resnet8_w4"] and found["resnet8"] > 8 * found["resnet8_w4"] > 0


def test_the_expected_time_is_work_over_pace_and_is_not_measured_for_a_little(monkeypatch):
    told = []
    monkeypatch.setattr(module, "pace", lambda step, units: told.append(units) or step() or 4.0)
    assert expected(1.1e12, IMAGES, COST) == 0 and told == []
    assert expected(1.2e12, IMAGES, COST) == 3e11 and told == [16 * 3 * 100]


def test_epochs_are_asked_once_for_a_seed_and_schedule():
    twice = [TAUGHT, replace(TAUGHT, terms=(Weighted("mse"),))]
    assert epochs_asked(twice) == 3 and epochs_asked([*twice, replace(TAUGHT, seed=1)]) == 6
    first = replace(TAUGHT, phases=(replace(PHASE, kind="initial", epochs=2), PHASE))
    assert epochs_asked([first]) == 5 and epochs_asked([replace(RUN, phases=(Phase("contrast", 4, 8, 0.1), Phase("linear", 2, 8, 0.1)))]) == 0


def learners(*runs): return [Learner(replace(run, teacher=None, terms=()), IMAGES) for run in runs]


def test_learners_share_a_batch_where_they_see_the_same_images_next():
    one, other, seed, phase = learners(RUN, replace(RUN, net="resnet8"), replace(RUN, seed=1), replace(RUN, phases=(replace(PHASE, batch=4),)))
    assert groups([one, seed, other, phase]) == [[one, other], [seed], [phase]]
    other.step = 1
    assert groups([one, other]) == [[one], [other]]
    other.step, other.epoch = 0, 1
    assert groups([one, other]) == [[one], [other]]
    deep = learners(RUN)[0]
    deep.run = TAUGHT
    half = learners(replace(RUN, precision="bf16"))[0]
    assert groups([one, deep, half]) == [[one], [deep], [half]] and groups([]) == []


def test_a_group_is_named_by_its_networks():
    assert members(learners(replace(RUN, net="resnet8"), RUN, RUN)) == "resnet8, 2 x resnet8_w4" and members(learners(RUN)) == "resnet8_w4"


def rated(top1): return {"phase": "classify", "epoch": 2, "val": None if top1 is None else {"top1": top1}, "test": None}


def test_a_line_tells_of_an_epoch():
    one, two = learners(RUN, replace(RUN, net="resnet8"))
    assert line([one], [rated(None)], 3) == "resnet8_w4-ce-seed0: classify 2/3, 3 s"
    assert line([one], [rated(71.234)], 3) == "resnet8_w4-ce-seed0: classify 2/3, val 71.23 %, 3 s"
    assert line([one, two], [rated(80.0), rated(71.5)], 3) == "seed 0, resnet8_w4, resnet8: classify 2/3, val 71.50 to 80.00 %, 3 s"
    two.diverged = "NaN at epoch 2, step 1"
    assert line([one, two], [rated(80.0), rated(None)], 3) == "seed 0, resnet8_w4, resnet8: classify 2/3, val 80.00 %, 3 s; diverged: resnet8-ce-seed0"


def test_every_result_has_the_facts_of_its_own_entry(tmp_path):
    "And a teacher that no entry asks for those of a teacher."
    runs = [replace(run, phases=(replace(PHASE, epochs=1),)) for run in (RUN, TAUGHT)]
    entries = Entry(runs[0], "student", "student", "t", "s", "matched"), Entry(runs[1], "distilled", "kd", "t", "s", "as-published")
    results = module.execute(Plan("toy", entries, "quick", IMAGES.identity), IMAGES, Store(tmp_path), module.How(live=False))
    assert {(r["role"], r["row"], r["protocol"], r["preset"]) for r in results.values()} == {
        ("student", "student", "matched", "quick"), ("distilled", "kd", "as-published", "quick"), ("teacher", "teacher", "", "quick")}
    assert results[runs[1].key]["row"] == "kd" and results[runs[0].key]["row"] == "student"


def test_an_epoch_is_reported_with_its_seconds_and_its_points(monkeypatch):
    told = []
    progress = type("Told", (), {"epoch": lambda self, *given: told.append(given)})()
    session = type("Session", (), {"how": module.How(live=False), "progress": progress})()
    monkeypatch.setattr(module.time, "monotonic", lambda: 1007.0)
    one, = learners(RUN)
    one.history = [{}, {}]
    module.report_epoch([one], [rated(80.0)], session, 1000.0)
    assert told == [("resnet8_w4-ce-seed0: classify 2/3, val 80.00 %, 7 s", {"resnet8_w4-ce-seed0": (2, 80.0)})]


def test_the_summary_says_who_trained_what(tmp_path):
    progress = Progress(1, 3, live=False)
    progress.end(3)
    where = f"{tmp_path.resolve()/'runs'}"
    assert summary_line(progress, 5, 3, Store(tmp_path)) == f"3 runs were trained now; 2 were found finished in {where}."
    assert summary_line(progress, 5, 4, Store(tmp_path)) == f"3 runs were trained now; 1 were found finished in {where}; 1 were trained by another process."


def test_out_of_memory_is_told_from_other_errors():
    for error in (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
                  RuntimeError("could not create a primitive")): assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied")) and not out_of_memory(ValueError("memory"))


def test_who_does_not_fit_is_named():
    error = too_large({RUN.key: "tried 3 GiB"}, [RUN, TAUGHT])
    assert isinstance(error, InputError) and str(error).startswith("resnet8_w4-ce-seed0 does not fit into memory (tried 3 GiB). A smaller batch")


def test_training_in_words(): assert training(PHASE) == "3 epochs, batch 8, learning rate 0.05, cosine"


def test_a_divergence_has_no_predictions_in_its_record():
    learner, = learners(RUN)
    learner.diverged, learner.spent = "NaN at epoch 1, step 2", learner.spent | {"students": 1.0, "input": 0.23456}
    learner.history = [{"epoch": 1, "val": {"top1": 1.0}, "test": {"top1": 1.0}}]
    record = record_of(learner, {"role": "student"}, "mark")
    assert record["outcome"] == learner.diverged and record["predictions"] is None and record["scores"] == {} and record["history"] == learner.history
    assert record["seconds"] == 1.23 and record["spent"]["input"] == 0.23 and record["weights"] == "mark" and record["role"] == "student"


def test_all_views_are_asked_once_and_no_more_than_fit(tmp_path, monkeypatch):
    run = replace(TAUGHT, phases=(replace(PHASE, batch=10),))
    module.execute(Plan("toy", (Entry(run.teacher, "teacher", "teacher", "t", "s"),), "quick", IMAGES.identity), IMAGES, Store(tmp_path),
                   module.How(live=False))
    run = replace(run, phases=(replace(PHASE, batch=10, epochs=10),))
    for budget, whole in ((4e9, True), (100.0, False)):
        monkeypatch.setattr(module, "CACHE", budget)
        like, views = Out(torch.zeros(1, 10), torch.zeros(1, 64)), Views(IMAGES.train_x, IMAGES).count
        pages = pages_for(((0, 0), (0, 1)), [run] * 4, views, module.CACHE / (24 * 20))
        assert pages == (every_view(views) if whole else ())
        cache = cache_of(run, ("logits",), Store(tmp_path), IMAGES, like, pages)
        asked = []
        net = module.load_net(run.teacher, Store(tmp_path), IMAGES)
        net.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
        teachers = Teachers({run.teacher.key: net}, {run.teacher.key: cache}, {run.teacher.key: ("logits",)})
        enumerate_views(teachers, run, IMAGES)
        assert cache.filled == [24] * views * whole and asked == [10] * (3 * views) * whole
        enumerate_views(teachers, run, IMAGES)
        assert len(asked) == 3 * views * whole, "and never again"
    assert cache_path("k", ("logits", "maps"), Store(tmp_path)) == tmp_path/"caches"/"k-logits-maps.safetensors"


# learners

@pytest.mark.parametrize("kernel,padding,stride,channels,per_group,unsafe", [
    (1, 0, 2, 7, 1, True), (1, 0, 2, 8, 1, False), (1, 0, (1, 2), 4, 1, True), (1, 0, (2, 1), 4, 1, True), (1, 0, 1, 4, 1, False), (3, 0, 2, 4, 1, False),
    (1, 1, 2, 4, 1, False), (1, 0, 2, 16, 4, True), (1, 0, 2, 32, 4, False), ((1, 3), 0, 2, 4, 1, False), (1, (0, 1), 2, 4, 1, False)])
def test_which_convolutions_are_unsafe(kernel, padding, stride, channels, per_group, unsafe):
    assert is_unsafe(torch.nn.Conv2d(channels, 32, kernel, stride, padding, groups=per_group)) == unsafe


def test_a_convolution_laid_out_gives_what_it_gave():
    for stride in (2, (1, 2), (3, 1)):
        conv, x = torch.nn.Conv2d(4, 6, 1, stride), torch.randn(2, 4, 9, 7)
        wanted = conv(x)
        laid = laid_out(conv, x.device)
        assert laid.stride == (1, 1) and laid(x).shape == wanted.shape
        torch.testing.assert_close(laid(x), wanted, atol=1e-6, rtol=1e-5)
    safe = torch.nn.Conv2d(8, 6, 1, 2)
    assert laid_out(safe, torch.device("cpu")).stride == (2, 2) and not safe._forward_pre_hooks


def test_the_contrastive_head_is_linear_relu_linear():
    head = Learner(replace(RUN, objective="supcon", phases=(Phase("contrast", 1, 8, 0.1), Phase("linear", 1, 8, 0.1))), IMAGES).head
    assert [type(m).__name__ for m in head] == ["Linear", "ReLU", "Linear"] and tuple(head[0].weight.shape) == (16, 16) and tuple(head[2].weight.shape) == (128, 16)
    assert Learner(RUN, IMAGES).head is None


# runs

def test_a_weight_rises_to_its_full_size_over_its_epochs():
    assert [Weighted("mse", 2.0, warmup=4).at(e) for e in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert [Weighted("mse", 2.0, warmup=w).at(0) for w in (0, 1)] == [2.0, 2.0]


def test_a_first_stage_has_its_share_of_the_epochs():
    step = replace(PHASE, epochs=240, shape="step", cuts=(0.5,))
    for epochs, first, expected in ((240, 30, 30), (24, 30, 3), (1, 30, 1), (120, 3, 2), (240, 1, 1)):
        initial, then = staged((replace(step, epochs=epochs),), first)
        assert initial == replace(step, kind="initial", epochs=expected, cuts=()) and then == replace(step, epochs=epochs)


def test_a_term_in_words_says_what_differs():
    assert worded(Weighted("mse", 0.01)) == "weight 0.01, normalize none, on logits" and "rising over 4 epochs" in worded(Weighted("mse", 1.0, warmup=4))
    assert "rising" not in worded(Weighted("mse", 1.0, warmup=1)) and "rising over 2 epochs" in worded(Weighted("mse", 1.0, warmup=2))
    assert replace(RUN, cross_entropy=0.1, terms=(Weighted("kd", 0.9),)).wording == "weight 0.9, T 4.0; cross-entropy 0.1" and RUN.wording == ""


def test_a_student_is_given_what_its_losses_ask_for():
    teacher, assistant = replace(RUN, net="resnet14"), replace(RUN, net="resnet10")
    assert distill(RUN, (Weighted("kd"),), teacher) == replace(RUN, terms=(Weighted("kd"),), teacher=teacher)
    assert distill(RUN, (Weighted("dml"),), teacher) == replace(RUN, terms=(Weighted("dml"),), peer="resnet14")
    assert distill(RUN, (Weighted("takd"),), teacher, assistant).teacher == assistant
    with pytest.raises(InputError, match="needs a network between resnet14 and resnet8_w4"): distill(RUN, (Weighted("takd"),), teacher)
    assert [p.kind for p in distill(RUN, (Weighted("ab"),), teacher).phases] == ["initial", "classify"]
    assert weighted("kd", 2, {"T": 4.0, "tau": 1.0}, 3) == Weighted("kd", 2.0, (), 3) and weighted("kd", 2, {"T": 2.0}).options == (("T", 2.0),)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"epochs": -1}, {"kind": "x"}, {"shape": "x"}])
def test_a_wrong_phase_is_refused(wrong):
    with pytest.raises(InputError): replace(PHASE, **wrong)
    assert replace(PHASE, epochs=1, batch=1)


def test_an_optimiser_written_with_a_phase_keeps_what_is_not_the_phases():
    made = optimised(PHASE, "adamw@lr=0.002@beta1=0.8")
    assert (made.optimiser, made.lr, made.weight_decay) == ("adamw@beta1=0.8", 0.002, 0.05)
    assert optimised(PHASE, "sgd") == replace(PHASE, optimiser="sgd")


def test_what_decides_a_run_cannot_be_changed():
    made = [(RUN, "net"), (PHASE, "lr"), (Weighted("kd"), "weight"), *((optimisers.build(name), "lr") for name in optimisers.names()),
            (Entry(RUN, "student", "student", "t", "s"), "row"), (Plan("toy", (), "quick", IMAGES.identity), "table")]
    for thing, name in made:
        with pytest.raises(FrozenInstanceError): setattr(thing, name, 1)


# what is kept of a teacher's answers

def answers(n, d=3): return Out(torch.arange(float(n * d)).view(n, d), torch.ones(n, 2), maps=(torch.full((n, 2, 2, 2), 7.0), torch.full((n, 1), 1e9)))


def cache(epochs=((0, 3), (1, 3)), taps=("logits", "maps"), about="a"): return TeacherCache({"about": about}, epochs, 5, answers(1), taps)


VIEWS = Views(IMAGES.train_x, IMAGES)


def test_answers_come_back_by_epoch_and_image_and_only_once_kept():
    kept, index = cache(), torch.tensor([4, 0, 1])
    place = kept.places(VIEWS, 1, 3, index)
    assert place.tolist() == [9, 5, 6] and kept.places(VIEWS, 1, 4, index) is None and not kept.has(1, 3, 3)
    kept.keep(place, as_taught(answers(3)))
    kept.note(1, 3, 0, 3)
    assert kept.has(1, 3, 3) and not kept.has(1, 3, 4) and not kept.has(0, 3, 3) and not kept.has(7, 3, 3) and (kept.hits, kept.asked) == (3, 16)
    found = kept.look_up(place.flip(0))
    assert found.logits.equal(answers(3).logits.flip(0)) and found.embedding is None
    assert [tuple(m.shape) for m in found.maps] == [(3, 2, 2, 2), (3, 1)] and found.maps[0].eq(7).all()
    assert found.maps[1].eq(65504).all(), "cut to what half precision holds"


def test_an_epoch_is_kept_as_far_as_it_is_written_without_a_gap():
    kept = cache()
    kept.note(0, 3, 2, 4)
    assert kept.filled == [0, 0] and not kept.changed
    kept.note(0, 3, 0, 2), kept.note(0, 3, 2, 4), kept.note(0, 3, 0, 1), kept.note(5, 5, 0, 4)
    assert kept.filled == [4, 0] and kept.changed


def test_a_page_for_every_view_answers_any_epoch():
    kept, every = cache(every_view(9)), torch.arange(5)
    for view in range(9):
        assert not kept.has(3, 4, 5)
        kept.keep(view * 5 + every, as_taught(answers(5)._replace(logits=torch.full((5, 3), float(view)))))
        kept.note(EVERY, view, 0, 5)
    found = kept.look_up(kept.places(VIEWS, 3, 4, every))
    assert kept.has(3, 4, 5) and found.logits[:, 0].tolist() == VIEWS.choose(3, 4, every).tolist()


def test_the_storage_is_made_beforehand_and_stays_where_it_is():
    kept = cache()
    where = {name: x.data_ptr() for name, x in kept.rows.items()}
    assert kept.size == 2 * 5 * answer_bytes(answers(1), kept.taps) == 2 * 5 * 2 * 12 and set(where) == {"logits", "maps.0", "maps.1"}
    kept.keep(torch.tensor([9]), as_taught(answers(1)))
    assert where == {name: x.data_ptr() for name, x in kept.rows.items()} and all(x.dtype == torch.float16 for x in kept.rows.values())


@pytest.mark.parametrize("most,again,asked,pages", [(9.5, 2, 10, 9), (8.5, 2, 10, 2), (9, 2, 9, 2), (1.9, 2, 0, 1), (0.9, 2, 0, 0), (9, 0, 9, 0)])
def test_pages_are_kept_as_far_as_the_budget_goes(most, again, asked, pages):
    pupils = [replace(TAUGHT, phases=(replace(PHASE, epochs=asked),))] if asked else []
    found = pages_for(tuple((0, i) for i in range(again)), pupils, 9, most)
    assert len(found) == pages and (pages != 9 or found[0] == (EVERY, 0))


def test_what_is_kept_is_written_and_read_for_the_same_teacher_alone(tmp_path):
    kept, index = cache(), torch.tensor([4, 0, 1])
    assert not load_cache(cache(), tmp_path/"none")
    kept.keep(kept.places(VIEWS, 1, 3, index), as_taught(answers(3)))
    kept.note(1, 3, 0, 3)
    save_cache(kept, tmp_path/"c")
    again = cache(((1, 4), (1, 3), (2, 2)))
    assert load_cache(again, tmp_path/"c") and again.filled == [0, 3, 0] and not again.changed
    found = again.look_up(again.places(VIEWS, 1, 3, index))
    assert found.logits.equal(answers(3).logits) and found.maps[0].eq(7).all()
    other, every = cache(about="b"), cache(every_view(9))
    assert not load_cache(other, tmp_path/"c") and other.filled == [0, 0] and (tmp_path/"c").exists()
    assert load_cache(every, tmp_path/"c") and not any(every.filled), "epochs are no views"
    (tmp_path/"c").write_bytes(b"junk")
    assert not load_cache(cache(), tmp_path/"c") and (tmp_path/"c").read_bytes() == b"junk", "told, and written over at the next save"


def test_all_answers_are_read_again_whatever_they_are_called(tmp_path):
    like, index = answers(2)._replace(stem=torch.full((2, 1, 2, 2), 3.0)), torch.tensor([2, 3])
    kept, again = (TeacherCache({}, [(0, 0)], 5, like, ("logits", "stem")) for _ in range(2))
    kept.keep(index, like)
    kept.note(0, 0, 0, 5)
    save_cache(kept, tmp_path/"c")
    assert load_cache(again, tmp_path/"c") and again.look_up(index).stem.eq(3).all() and again.look_up(index).logits.equal(answers(2).logits)


def test_only_epochs_of_several_groups_are_asked_again():
    def taught(**changes):
        learner, = learners(RUN)
        learner.run = replace(TAUGHT, **changes)
        return learner
    short, long, other = taught(), taught(phases=(replace(PHASE, epochs=5),)), taught(teacher=replace(RUN, net="resnet14"))
    key = TAUGHT.teacher.key
    assert asked_again([[short, taught()]], key) == asked_again([[long], [other]], key) == ()
    assert asked_again([[short], [long]], key) == asked_again([[short, short]], key, later=True) == ((0, 0), (0, 1), (0, 2))
    long.epoch = 2
    assert asked_again([[short], [long]], key) == ((0, 2),), "what lies behind a learner is not asked"
    long.run = replace(long.run, seed=1)
    assert asked_again([[short], [long]], key) == ()
    staged = taught(phases=(replace(PHASE, kind="initial", epochs=1), PHASE))
    assert asked_again([[short], [staged]], key) == ((0, 0), (0, 1), (0, 2)), "the epochs after a first stage are those of all others"


def test_students_see_half_precision_of_what_they_look_at():
    out = Out(torch.tensor([[1 / 3, 1e9, -1e9]]), torch.ones(1, 2), maps=(torch.full((1, 1), 0.1),))
    found = as_taught(out, ("logits", "maps"))
    assert found.logits.tolist() == [[pytest.approx(1 / 3, abs=1e-4), 65504, -65504]] and found.logits.dtype == torch.float32
    assert found.logits[0, 0] != out.logits[0, 0] and found.embedding is None and found.maps[0].equal(out.maps[0].half().float())
    assert as_taught(out).embedding.equal(out.embedding) and halved(torch.tensor(70000.0)) == 65504


@pytest.mark.parametrize("live", [True, False])
def test_only_who_watches_is_told(tmp_path, monkeypatch, live):
    said = []
    monkeypatch.setattr(module, "tell", said.append)
    queue = SimpleNamespace(news=lambda: "waiting for x")
    session = SimpleNamespace(how=module.How(live=live), stop=SimpleNamespace(asked=False), progress=SimpleNamespace(wait=lambda: None))
    module.wait(queue, session)
    assert said == ["waiting for x"] * live
