"What a step computes is one graph of tensors: torch captures it without a break, for every loss, and the graph gives the numbers of the code."
from dataclasses import replace

import pytest
import torch

from kdnb.bench import random_images
from kdnb.engine.learner import Learner, owned
from kdnb.engine.run import Phase, Run, Weighted, distill
from kdnb.engine.teacher_cache import as_taught
from kdnb.engine.frozen import frozen
from kdnb.engine.train import LOSS, inputs, open_epoch, views_for
from kdnb.models.pretrained import network
from kdnb.registry import losses

IMAGES = random_images(40)
PHASE = Phase("classify", 2, 16, 0.05)
ALONE = Run("resnet8_w4", "ce", (PHASE,), IMAGES.identity, 0)
TEACHER = replace(ALONE, seed=1)
RUNS = {"ce": ALONE, "contrast and linear": replace(ALONE, objective="supcon", phases=(replace(PHASE, kind="contrast"), replace(PHASE, kind="linear")))}
RUNS |= {name: distill(ALONE, (Weighted(name, 0.5),), TEACHER, TEACHER) for name in losses.names() if "attention" not in losses.build(name).needs}
RUNS |= {"crd+kd": distill(ALONE, (Weighted("crd", 0.5), Weighted("kd", 0.5)), TEACHER)}
ROUNDED = {"reviewkd"}   # sums of a fused map are taken in another order


def gradients(learner, work, batch, start):
    "The loss of a batch, all gradients, and what the modules hold afterwards, from a state."
    modules = torch.nn.ModuleDict(owned(learner))
    modules.load_state_dict(start)
    modules.zero_grad()
    loss = work(*batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in modules.parameters() if p.grad is not None), *(v.clone() for v in modules.state_dict().values())]


def both(learner, phase, net):
    "What a phase's loss gives as code and as a graph, on a batch after its first."
    index, views = torch.arange(16), views_for(phase, IMAGES)
    x, y = inputs(views, phase, 0, 0, index), IMAGES.train_y[index]
    with torch.no_grad(): taught = as_taught(net(x)) if net else None
    def work(x, y, index): return LOSS[phase.kind](learner, x, y, index, taught)
    work(x, y, index)   # the first batch is looked at, and sets crd's constants
    for term in learner.terms: term.check_values = lambda *batch: None   # a GPU looks at the first batch only
    start = {k: v.clone() for k, v in torch.nn.ModuleDict(owned(learner)).state_dict().items()}
    torch.compiler.reset()
    graph = torch.compile(work, fullgraph=True, backend="aot_eager")
    return [gradients(learner, way, (x, y, index), start) for way in (work, graph)]


@pytest.mark.parametrize("name", RUNS)
def test_the_graph_of_a_step_is_whole_and_gives_the_same_numbers(name):
    run = RUNS[name]
    torch.manual_seed(0)
    net = frozen(network(run.teacher.net, IMAGES)) if run.teacher else None
    learner = Learner(run, IMAGES, net)
    for learner.phase, phase in enumerate(run.phases):
        learner.enter(), open_epoch([learner])
        plain, graph = both(learner, phase, net)
        assert len(plain) == len(graph) > 3
        for one, other in zip(plain, graph):
            if name in ROUNDED: torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
            else: assert one.equal(other)


def test_a_graph_breaks_where_the_host_reads():
    torch.compiler.reset()
    graph = torch.compile(lambda x: x if x.sum() > 0 else -x, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.TorchDynamoException): graph(torch.ones(3))


def test_what_a_step_counts_is_counted_in_place():
    "A graph that is replayed writes where it wrote before."
    for name in ("crd", "supcrd_lw"):
        run = RUNS[name]
        net = frozen(network(run.teacher.net, IMAGES))
        learner = Learner(run, IMAGES, net)
        views, index = views_for(PHASE, IMAGES), torch.arange(16)
        open_epoch([learner])
        x, y = inputs(views, PHASE, 0, 0, index), IMAGES.train_y[index]
        with torch.no_grad(): taught = as_taught(net(x))
        where = {k: v.data_ptr() for k, v in learner.terms.named_buffers()}
        for _ in range(2): LOSS["classify"](learner, x, y, index, taught)
        assert where == {k: v.data_ptr() for k, v in learner.terms.named_buffers()} and int(learner.terms[0].step) == 2
