"A graph of a whole group's step: on a tape, which does on a CPU what a graph does on a GPU, every loss, phase and optimiser gives the bits of steps that are taken one by one."
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import kdnb.engine.optimisers as optimisers
import kdnb.engine.train as train
from kdnb.bench import random_images
from kdnb.engine.execute import Speed
from kdnb.engine.frozen import frozen
from kdnb.engine.learner import Learner, state
from kdnb.engine.replay import CudaGraph, Replay, Tape
from kdnb.engine.run import Phase, Run, Weighted, distill, optimised
from kdnb.engine.teacher_cache import TeacherCache, every_view
from kdnb.engine.train import FIRST, Flight, Teachers, epochs_ahead, train_epoch, views_for
from kdnb.models.pretrained import network
from kdnb.registry import losses

IMAGES = random_images(80)
PHASE = Phase("classify", 2, 12, 0.05, warmup=0.3)
ALONE = Run("resnet8_w4", "ce", (PHASE,), IMAGES.identity, 0)
TEACHER = replace(ALONE, seed=1)
TAUGHT = [name for name in losses.names() if "attention" not in losses.build(name).needs]
RUNS = {"ce": ALONE, "contrast and linear": replace(ALONE, objective="supcon", phases=(replace(PHASE, kind="contrast"), replace(PHASE, kind="linear")))}
RUNS |= {name: distill(ALONE, (Weighted(name, 0.5, warmup=2),), TEACHER, TEACHER) for name in TAUGHT}
RUNS |= {"adamw": distill(replace(ALONE, phases=(optimised(PHASE, "adamw"),)), (Weighted("kd", 0.5),), TEACHER)}


ROUNDED = {"reviewkd"}  # autograd adds gradients in place only where nobody keeps them, as a tape does, and sums take the order of the memory


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    "Optimisers are fused, learning rates are fp32, and labels are looked at in the first batch only."
    for module in (optimisers, train): monkeypatch.setattr(module, "on_gpu", lambda parameters: True)


def trained(runs, flight=Flight(), caches=lambda learner, net: {}):
    "Trains runs in lockstep; gives their learners."
    torch.manual_seed(0)
    net = frozen(network(TEACHER.net, IMAGES))
    group = [Learner(run, IMAGES, net) for run in runs]
    for learner in group:
        for term in learner.terms: term.check_values = lambda *batch: None
    teachers = Teachers({TEACHER.key: net}, caches(group[0], net))
    while not group[0].done: train_epoch(group, IMAGES, views_for(group[0].current, IMAGES), teachers, flight=flight)
    return group


def same(one, other, near=False):
    "Whether two learners hold the same bits, or nearly, optimiser and history included."
    (a, about), (b, told) = state(one), state(other)
    assert a.keys() == b.keys()
    if near: return all(torch.allclose(a[k].double(), b[k].double(), 1e-4, 1e-6) for k in a)
    timed = lambda found: {k: v for k, v in found.items() if k != "spent"}
    return all(a[k].equal(b[k]) for k in a) and timed(about) == timed(told)


@pytest.mark.parametrize("name", RUNS)
def test_every_loss_is_replayed_to_the_bit(name):
    assert same(*trained([RUNS[name]]), *trained([RUNS[name]], Flight(graph=Replay(Tape()))), name in ROUNDED)


def test_a_group_is_one_graph():
    runs, tape = [RUNS[name] for name in ("kd", "gram", "crd")], Tape()
    recorded = []
    record = tape.record
    tape.record = lambda work: recorded.append(1) or record(work)
    replayed = trained(runs, Flight(graph=Replay(tape)))
    assert all(map(same, trained(runs), replayed)) and len(recorded) == PHASE.epochs


@pytest.mark.parametrize("pages", ["epochs", "views"])
def test_answers_that_are_kept_are_replayed(pages):
    def caches(learner, net):
        asked = epochs_ahead(learner) if pages == "epochs" else every_view(162)
        cache = TeacherCache({}, asked, len(IMAGES.train_x), net(torch.zeros(1, *IMAGES.shape)), ("logits",))
        return {TEACHER.key: cache}
    assert same(*trained([RUNS["kd"]], caches=caches), *trained([RUNS["kd"]], Flight(graph=Replay(Tape())), caches))


class Broken(Tape):
    "A tape of a step with a planted fault."
    def __init__(self, fault): super().__init__(); self.fault = fault

    def record(self, work): super().record(lambda: (work(), self.fault()))


def test_a_number_of_the_host_stays_what_it_was_on_a_tape(monkeypatch):
    plain = trained([ALONE])
    step = train.step
    monkeypatch.setattr(train, "step", lambda learner, rate, at, *batch: step(learner, float(PHASE.lr), at, *batch))
    assert not same(*plain, *trained([ALONE], Flight(graph=Replay(Tape()))))


def test_a_tape_refuses_what_the_host_reads():
    with pytest.raises(RuntimeError, match="the host would wait"):
        trained([ALONE], Flight(graph=Replay(Broken(lambda: float(torch.ones(()).sum())))))


def test_the_first_steps_of_an_epoch_are_taken_one_by_one_and_a_short_epoch_needs_no_graph():
    counted = []
    class Counted(Tape):
        def replay(self): counted.append(1); super().replay()
    trained([ALONE], Flight(graph=Replay(Counted())))
    assert len(counted) == PHASE.epochs * (80 // 12 - FIRST)
    short = replace(ALONE, phases=(replace(PHASE, batch=40),))
    trained([short], Flight(graph=lambda epoch, batches, *rest: counted.append(len(batches))))
    assert counted[-2:] == [0, 0]


def test_an_interrupted_replay_goes_on_from_its_step():
    from kdnb.engine.restore import restore
    class Stop(Exception): pass
    def tick(done):
        if learner.step == 5: raise Stop
    torch.manual_seed(0)
    net = frozen(network(TEACHER.net, IMAGES))
    def quiet():
        made = Learner(RUNS["kd"], IMAGES, net)
        for term in made.terms: term.check_values = lambda *batch: None
        return made
    learner, views = quiet(), views_for(PHASE, IMAGES)
    with pytest.raises(Stop): train_epoch([learner], IMAGES, views, Teachers({TEACHER.key: net}), tick, Flight(graph=Replay(Tape())))
    tensors, about = state(learner)
    again = quiet()
    restore(again, {k: v.clone() for k, v in tensors.items()}, about)
    while not again.done: train_epoch([again], IMAGES, views, Teachers({TEACHER.key: net}), flight=Flight(graph=Replay(Tape())))
    assert same(*trained([RUNS["kd"]]), again)


def test_a_gpu_gets_a_graph_where_it_is_asked_for_and_a_cpu_does_not(monkeypatch):
    group = [Learner(ALONE, IMAGES)]
    assert Speed(graphs=True).prepare(group, Teachers()) == Flight()
    group[0].device = torch.device("cuda")
    assert isinstance(Speed(graphs=True).prepare(group, Teachers()).graph.recorder, CudaGraph)
    assert Speed().prepare(group, Teachers()) == Flight()


def test_a_graph_is_recorded_in_the_memory_of_the_last(monkeypatch):
    used, made = [], []
    class Graph:
        def __init__(self): made.append(self)
        def pool(self): return "pool"
        def replay(self): used.append("replay")
    class Recording:
        def __init__(self, graph, pool): used.append(pool)
        def __enter__(self): return self
        def __exit__(self, *error): return None
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(synchronize=lambda: used.append("wait"), CUDAGraph=Graph, graph=Recording))
    graph = CudaGraph()
    for _ in range(2): graph.record(lambda: used.append("work")), graph.replay()
    assert used == ["wait", None, "work", "replay", "wait", "pool", "work", "replay"] and len(made) == 2
