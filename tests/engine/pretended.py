"""Trains every loss for three steps on a device that is only pretended, and tells what a step does that would stop a real one: `python pretended.py`.

Torch's FakeTensorMode computes shapes and devices and no numbers. The pretended device is torch's own placeholder for a device written in Python, since the backward pass of
tensors that are said to be on `cuda` asks for a driver; to the dispatcher it is a device like any other. What is on it cannot be read, copied or mixed with what is on the CPU."""
import json
import sys
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.overrides import TorchFunctionMode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from kdnb.data.images import load_images
from kdnb.engine.learner import Learner
from kdnb.engine.run import Phase, Run, Weighted, distill
from kdnb.engine.train import Teachers, frozen, steps_of, views_for
from kdnb.models.pretrained import network
from kdnb.registry import losses


class Module(_DummyBackendModule):
    "What torch asks of a device's module, for autocast as well."
    def get_amp_supported_dtype(self): return [torch.bfloat16]


DEVICE = "pretended"
READS = ("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")


class Watch(TorchDispatchMode):
    "Writes down every operation that reads, copies or mixes what is on the device, while it is on; and counts the others."
    def __init__(self): super().__init__(); self.on, self.found, self.count = False, [], {}

    def __torch_dispatch__(self, function, types, given=(), named=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if not self.on or not function.name().startswith("aten::"): return function(*given, **(named or {}))
        self.count[name] = self.count.get(name, 0) + 1
        said, out = self.found, None
        if name in READS: said.append(f"{name} reads the device")
        try: out = function(*given, **(named or {}))
        except Exception as error:
            said.append(f"{name}: {str(error).splitlines()[0][:150]}")
            raise
        kinds = {x.device.type for x in tree_leaves((given, named, out)) if isinstance(x, torch.Tensor)}
        if "cpu" in kinds: said.append(f"{name} on {' and '.join(sorted(kinds))}")
        return out


class Data(TorchFunctionMode):
    "Has numbers of Python come to the device, which the placeholder cannot; written down where the watch is on."
    def __init__(self, watch): super().__init__(); self.watch = watch

    def __torch_function__(self, function, types, given=(), named=None):
        named = named or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(named.get("device") or "cpu").type == DEVICE:
            if self.watch.on: self.watch.found.append(f"{function.__name__} copies to the device")
            with torch._C.DisableTorchFunction(): like = torch.tensor(given[0], dtype=named.get("dtype"))
            return torch.empty(like.shape, dtype=like.dtype, device=DEVICE)
        return function(*given, **named)


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
        if hasattr(term, "started"): term.started = True
    learner.enter()
    return learner


def rehearse(runs, images, nets, caches=lambda images: {}):
    "Takes runs through three steps of each of their phases; gives what the last two did that they should not."
    group, found = [Learner(run, images, nets.get(run.teacher.key) if run.teacher else None) for run in runs], []
    with pretended() as watch:
        images = on_device(images)
        for learner in group: settled(learner, watch.mode)
        teachers = Teachers({key: moved(net, watch.mode) for key, net in nets.items()}, caches(images))
        def tick(done): watch.on = True
        try:
            for number, phase in enumerate(runs[0].phases):
                for learner in group:
                    learner.phase = number
                    if number: learner.enter()
                views = views_for(phase, images)
                steps_of(group, images, views, teachers, tick, ())
                watch.on = False
        except Exception as error: watch.on = False; watch.found.append(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return watch.found


def cases():
    "Gives runs by name: every loss that a ResNet can teach, and both phases of a contrastive network."
    images = load_images("digits").split(validation=100, train=96, test=100)
    phase = Phase("classify", 2, 32, 0.05)
    alone = Run("resnet8", "ce", (phase,), images.identity, 0)
    teacher = replace(alone, net="resnet14")
    found = {"ce": alone, "supcon alone": replace(alone, objective="supcon", phases=(replace(phase, kind="contrast"), replace(phase, kind="linear")))}
    for name in losses.names():
        term = losses.build(name)
        if "attention" not in term.needs: found[name] = distill(alone, (Weighted(name, 0.5),), teacher, replace(teacher, net="resnet8"))
    return images, found


def main(names):
    _setup_privateuseone_for_python_backend(DEVICE, Module())
    images, runs = cases()
    said = {}
    for name in names or runs:
        run = runs[name]
        torch.manual_seed(0)
        nets = {run.teacher.key: frozen(network(run.teacher.net, images))} if run.teacher else {}
        said[name] = rehearse([run], images, nets)
    print(json.dumps(said))


if __name__ == "__main__": main(sys.argv[1:])
