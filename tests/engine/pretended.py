"""Trains every loss for three steps on a device that is only pretended, and tells what a step does that would stop a real one: `python pretended.py`.

Torch's FakeTensorMode computes shapes and devices and no numbers. The pretended device is torch's own placeholder for a device written in Python, since the backward pass of
tensors that are said to be on `cuda` asks for a driver; to the dispatcher it is a device like any other. What is on it cannot be read, copied or mixed with what is on the CPU."""
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.overrides import TorchFunctionMode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import kdnb.engine.train as train
from kdnb.bench import random_images
from kdnb.contract import Out
from kdnb.engine.frozen import frozen
from kdnb.engine.learner import Learner
from kdnb.engine.optimisers import optimisers
from kdnb.engine.run import Phase, Run, Weighted, distill, optimised
from kdnb.engine.teacher_cache import TeacherCache, every_view
from kdnb.engine.stopwatch import Stopwatch
from kdnb.engine.train import Epoch, Teachers, steps_of, views_for
from kdnb.models.pretrained import network
from kdnb.registry import losses


class Module(_DummyBackendModule):
    "What torch asks of a device's module, for autocast as well."
    def get_amp_supported_dtype(self): return [torch.bfloat16]


DEVICE = "pretended"
READS = ("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
SHAPELESS = ("_fused_sgd_",)  # change tensors in place, and torch has no rule for their shapes
ONCE = ("started",)  # what terms remember of a first step, beside `seen`


class Watch(TorchDispatchMode):
    "Writes down every operation that reads, copies or mixes what is on the device, while it is on; and counts the others."
    def __init__(self): super().__init__(); self.on, self.found, self.count = False, [], {}

    def __torch_dispatch__(self, function, types, given=(), named=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        call = (lambda *given, **named: None) if name in SHAPELESS else function
        if not self.on or not function.name().startswith("aten::"): return call(*given, **(named or {}))
        self.count[name] = self.count.get(name, 0) + 1
        said, out = self.found, None
        if name in READS: said.append(f"{name} reads the device")
        try: out = call(*given, **(named or {}))
        except Exception as error:
            said.append(f"{name}: {str(error).splitlines()[0][:150]}")
            raise
        kinds = {x.device.type for x in tree_leaves((given, named, out)) if isinstance(x, torch.Tensor)}
        if "cpu" in kinds: said.append(f"{name} on {' and '.join(sorted(kinds))}")
        return out


class Data(TorchFunctionMode):
    "Has numbers of Python and constants of modules come to the device, which the placeholder cannot; written down where the watch is on."
    def __init__(self, watch): super().__init__(); self.watch = watch

    def __torch_function__(self, function, types, given=(), named=None):
        named = named or {}
        made = function in (torch.tensor, torch.as_tensor) and torch.device(named.get("device") or "cpu").type == DEVICE
        moves = function is torch.Tensor.to and not isinstance(given[0], FakeTensor) and DEVICE in str(given[1:])
        if not made and not moves: return function(*given, **named)
        if made and isinstance(given[0], torch.Tensor): return given[0]
        if self.watch.on: self.watch.found.append(f"{function.__name__} copies to the device")
        with torch._C.DisableTorchFunction(): like = given[0] if moves else torch.tensor(given[0], dtype=named.get("dtype"))
        return torch.empty(like.shape, dtype=like.dtype, device=DEVICE)


def moved(module, mode):
    "Replaces the tensors of a module by pretended ones of the same shapes."
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, x in kept.items():
                if x is None: continue
                made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)
                kept[name] = torch.nn.Parameter(made, x.requires_grad) if isinstance(x, torch.nn.Parameter) else made
    return module


@contextmanager
def pretended():
    "Gives a watch under which all new tensors are pretended."
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, Watch() as watch, Data(watch):
        watch.mode = mode
        yield watch


def on_device(images):
    "Gives the training images on the device, as many and as large."
    return replace(images, **{name: torch.empty(x.shape, dtype=x.dtype, device=DEVICE)
                              for name, x in vars(images).items() if isinstance(x, torch.Tensor)})


def settled(learner, mode):
    "Puts a learner on the device, past its first step: what is looked at once has been looked at."
    learner.device = torch.device(DEVICE)
    for module in (learner.net, learner.head, learner.terms, learner.peer):
        if module is not None: moved(module, mode)
    for term in learner.terms:
        term.seen = True
        for name in ONCE:
            if hasattr(term, name): setattr(term, name, True)
    learner.enter()
    return learner


def kept(way, keys, images):
    "Gives the caches of teachers: none, or an epoch that is \"asked\" for the first time, or again (\"kept\"), or every \"view\"."
    if not way: return {}
    like = Out(torch.empty(1, 10, device=DEVICE), torch.empty(1, 64, device=DEVICE))
    pages = every_view(162) if way == "view" else [(0, 0)]
    made = {key: TeacherCache({}, pages, len(images.train_x), like) for key in keys}
    for cache in made.values(): cache.filled = [0 if way == "asked" else cache.images] * len(pages)
    return made


def rehearse(run, images, net, way=""):
    "Takes a run through three steps of each of its phases; gives what the last two did that they should not, and their operations."
    learner, nets = Learner(run, images, net), {run.teacher.key: net} if run.teacher else {}
    with pretended() as watch:
        images = on_device(images)
        settled(learner, watch.mode)
        teachers = Teachers({key: moved(net, watch.mode) for key, net in nets.items()}, kept(way, nets, images))
        def tick(done): watch.on = True
        try:
            for learner.phase, phase in enumerate(run.phases):
                learner.enter()
                steps_of(Epoch([learner], images, views_for(phase, images), teachers, Stopwatch("cpu")), tick)
                watch.on = False
        except Exception as error:
            watch.on = False
            watch.found.append(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return list(dict.fromkeys(watch.found)), watch.count


def cases():
    "Gives runs by name, and how their teacher is asked: every loss that a ResNet can teach, all phases, optimisers and ways."
    images = random_images(96)
    phase = Phase("classify", 2, 32, 0.05)
    alone = Run("resnet8", "ce", (phase,), images.identity, 0)
    teacher = replace(alone, net="resnet14")
    found = {"ce": alone, "contrast and linear": replace(alone, objective="supcon", phases=(replace(phase, kind="contrast"), replace(phase, kind="linear")))}
    for name in losses.names():
        term = losses.build(name)
        if "attention" not in term.needs: found[name] = distill(alone, (Weighted(name, 0.5),), teacher, replace(teacher, net="resnet8"))
    both = distill(alone, (Weighted("kd", 0.5), Weighted("gram", 0.5, (("on", "embedding"),))), teacher)
    found |= {f"kd+gram, {way}": both for way in ("asked", "kept", "view")}
    found |= {f"kd+gram, {name}": replace(both, phases=(optimised(phase, name),)) for name in optimisers.names()}
    return images, found


def planted():
    "Gives faults by name: what a loss must not do."
    def read(loss, x): return loss * float(loss.detach())
    def branch(loss, x): return loss if loss > 0 else -loss
    def pick(loss, x): return loss + (x > 0).nonzero().sum()
    def copy(loss, x): return loss * torch.tensor(2.0, device=DEVICE)
    def mix(loss, x): return loss + (torch.ones(x.shape) * 2).to(DEVICE).sum()
    def back(loss, x): return loss + x.cpu().sum().to(DEVICE)
    return {f.__name__: f for f in (read, branch, pick, copy, mix, back)}


def main(names):
    "Rehearses some cases, or all of them."
    _setup_privateuseone_for_python_backend(DEVICE, Module())
    train.BLOCK = 1   # what is drawn for many steps is drawn for each
    images, runs = cases()
    said = {}
    faults, plain = planted(), train.LOSS["classify"]
    for name in names or (*runs, *faults):
        def loss(learner, x, *rest): return faults[name](plain(learner, x, *rest), x)
        train.LOSS["classify"] = loss if name in faults else plain
        runs[name] = runs["ce"] if name in faults else runs[name]
        torch.manual_seed(0)
        teacher = runs[name].teacher
        net, way = teacher and frozen(network(teacher.net, images)), name.partition(", ")[2]
        said[name] = rehearse(runs[name], images, net, way if way in ("asked", "kept", "view") else "")
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # autograd's thread of the pretended device asks for the interpreter while it ends, which aborts the process now and then
