"Run by torch.distributed on two ranks: the value of every loss (and first stage) on a split batch, and the ranks' mean gradient, are those of the whole batch."
import kdnb  # noqa: F401 (before torch)
import torch
import torch.distributed as dist

from kdnb.checks import _rows, gradients, outputs, stages
from kdnb.registry import losses

student, teacher, y = outputs(6), outputs(6, width=8, seed=1), torch.tensor([0, 1, 2, 0, 1, 4])
index = torch.arange(6)


def made(name):
    torch.manual_seed(0)
    term = losses.build(name)
    term.prepare(student, teacher, y)
    return term


whole = {}
for name in losses.names():
    found = []
    for loss_of in stages(made(name)):
        loss = loss_of(student, teacher, y, index)
        found.append((loss.detach(), gradients(loss, student)))
    whole[name] = found

dist.init_process_group("gloo")
rank = dist.get_rank()
mine = torch.arange(3) + 3 * rank
for name in losses.names():
    term, s = made(name), _rows(student, mine)
    for loss_of, (value, wanted) in zip(stages(term), whole[name]):
        loss = loss_of(s, _rows(teacher, mine), y[mine], index[mine])
        assert torch.allclose(loss, value, rtol=1e-9), f"{name}: {loss} instead of {value}"
        for got, all_rows in zip(gradients(loss, s), wanted):
            if all_rows is None: continue
            got = torch.zeros_like(all_rows[mine]) if got is None else got
            assert torch.allclose(got / 2, all_rows[mine], rtol=1e-8, atol=1e-12), f"{name}: another gradient"
    if rank == 0: print(name, flush=True)
dist.destroy_process_group()
