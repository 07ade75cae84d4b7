"""Uses a GPU that is there for minutes and has neither Jupyter nor papermill: checks, then speeds, then runs, in that order.

    python tools/gpu.py --out OUT [--data DATA] [--have EARLIER] [--minutes 9] [--only checks,speeds,runs]

Whatever is finished is written to OUT at once: `done.json` (what was done, what it gave, how long it took), `checks.md`, the speeds, and `results.tar.gz` (one file per run, plans and reports).
With EARLIER, a folder of such files, what is finished there is not done again. Unfinished runs leave checkpoints in `--work`, for another call on the same machine. `--tiny` tries all of it out on a CPU, in minutes."""
import argparse
import json
import os
import signal
import sys
import tarfile
import time
import traceback
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MOST = 16 * 2**20  # bytes of a file that comes back

FAST = {"preset": "fast", "teachers": 1}
TABLES = [  # what is run, in this order; weights are tuned before the tables that use them
    ("weights", {"teacher": "ce", "loss": "mse,kd", "most": 3} | FAST),
    ("weights", {"teacher": "supcon", "loss": "mse,norm,cosine,gram,supcon", "most": 3} | FAST),
    ("cifar10_supcon", {"teacher": "ce", "loss": "mse,kd"} | FAST),
    ("cifar10_supcon", {"teacher": "supcon", "loss": "mse,norm,cosine,gram,supcon"} | FAST),
    ("supcrd", FAST),
    ("ckd_fig8", FAST),
]
TINY = {"data": "digits", "preset": "quick", "epochs": 1, "seeds": 1, "batch": 32}


# --- notebooks without a kernel ---------------------------------------------------------------

def without_jupyter():
    "Puts a stand-in for IPython's displays where there is none; IPython itself stays absent, as others look for it."
    try: import IPython.display  # noqa: F401
    except ImportError:
        module = ModuleType("IPython.display")
        module.Markdown = module.Image = module.HTML = str
        module.display = lambda *shown, **options: None
        sys.modules["IPython.display"] = module


def run_notebook(name: str, **given) -> dict:
    "Runs the cells of a notebook with parameters, as papermill would; gives their names."
    without_jupyter()
    names = {"__name__": "__main__", "In": [""]}
    def run(source):
        names["In"].append(source)
        exec(compile(source, f"{name}[{len(names['In']) - 1}]", "exec"), names)
    for cell in json.loads((ROOT/"nbs"/f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] != "code": continue
        run("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", ()):
            run("# Parameters\n" + "\n".join(f"{key} = {value!r}" for key, value in given.items()))
    return names


# --- checks -----------------------------------------------------------------------------------

def check_views(device) -> str:
    "Compares every view of some images, and what epochs draw, with a CPU's, to the bit."
    import torch
    from kdnb.bench import random_images
    from kdnb.data.views import Views
    images, index = random_images(64), torch.arange(64)
    here, there = Views(images.train_x, images), Views(images.train_x.to(device), images.to(device))
    for view in range(here.count):
        assert there.raw(index.to(device), torch.tensor(view, device=device)).cpu().equal(here.raw(index, torch.tensor(view))), f"view {view}"
    for epoch in range(20):
        assert there.drawn(3, epoch, index.to(device))[0].cpu().equal(here.drawn(3, epoch, index)[0]), f"epoch {epoch}"
    return f"{here.count} views and the draws of 20 epochs are those of a CPU, to the bit"


def passes(term, student, teacher, y, index):
    "Gives the value of a loss and its gradients."
    from kdnb.checks import gradients, reached
    loss = term(student, teacher, y, index)
    return [loss.detach(), *reached(gradients(loss, student))]


def moved(out, device):
    "Gives an output in fp32 on a device."
    import torch
    from torch.utils._pytree import tree_map_only
    return tree_map_only(torch.Tensor, lambda x: x.detach().float().to(device).requires_grad_(x.requires_grad), out)


def farthest(name: str, device) -> float:
    "Gives the largest relative distance of a loss and its gradients, in fp32 there, from fp64 here."
    import torch
    from kdnb.checks import outputs, ready
    student, teacher, y = outputs(32), outputs(32, seed=1), torch.arange(32) % 5
    term, index = ready(name, {}, student, teacher, y)
    there = deepcopy(term).float().to(device)
    wanted = passes(term.double(), student, teacher, y, index)
    found = passes(there, moved(student, device), moved(teacher, device), y.to(device), index.to(device))
    assert len(found) == len(wanted), f"{name} has other gradients there"
    return max(float((a.cpu().double() - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(found, wanted))


def check_losses(device) -> str:
    "Compares every loss and its gradients with fp64 on a CPU."
    from kdnb.registry import losses
    far = {name: farthest(name, device) for name in losses.names()}
    wrong = {name: f"{value:.1e}" for name, value in far.items() if not value < 1e-3}
    assert not wrong, f"far from fp64: {wrong}"
    return f"{len(far)} losses within {max(far.values()):.1e} of fp64"


def some_runs(losses={"kd": 0.1, "gram": 1e-6, "crd": 0.1}, epochs=2):
    "Gives runs of a small student and the noise that they see."
    from kdnb.bench import random_images
    from kdnb.engine.run import Phase, Run, distill, weighted
    images = random_images(512)
    alone = Run("resnet8", "ce", (Phase("classify", epochs, 64, 0.01),), images.identity, 0)
    return [distill(alone, (weighted(name, weight),), replace(alone, net="resnet14")) for name, weight in losses.items()], images


def trained(device, runs, images, speed, exact=True) -> list:
    "Trains runs together; gives the weights of each as one vector."
    import torch
    from kdnb.engine.execute import determined
    from kdnb.engine.in_flight import students
    from kdnb.engine.train import train_epoch
    made = students(runs, images, device)
    with determined(exact, speed):
        flight = speed.prepare(made.group, made.teachers)
        while group := [learner for learner in made.group if not learner.done]:
            train_epoch(group, made.images, made.views, made.teachers, flight=flight)
    return [torch.cat([p.detach().flatten().cpu() for p in learner.net.parameters()]) for learner in made.group]


def check_lockstep(device) -> str:
    "Compares students that are trained together with the same trained alone, to the bit."
    from kdnb.engine.execute import Speed
    runs, images = some_runs()
    together = trained(device, runs, images, Speed())
    for run, mine in zip(runs, together):
        alone, = trained(device, [run], images, Speed())
        assert mine.equal(alone), f"{run.method} differs"
    return f"{len(runs)} students in lockstep are what they are alone, to the bit"


def check_ways(device) -> str:
    "Compares what students become in every way to use the device."
    from kdnb.engine.execute import Speed
    runs, images = some_runs(epochs=1)
    plain = trained(device, runs, images, Speed(), exact=False)
    ways = {"again": Speed(), "streams": Speed(streams=3), "graphs": Speed(graphs=True), "tf32": Speed(tf32=True)}
    if device.type == "cuda": ways["compiled"] = Speed(compiled=True)
    far, failed = {}, {}
    for way, speed in ways.items():
        try: found = trained(device, runs, images, speed, exact=False)
        except Exception as error: failed[way] = f"{type(error).__name__}: {error}".splitlines()[0]
        else: far[way] = max(float((a - b).norm() / a.norm()) for a, b in zip(plain, found))
    told = ", ".join(f"{way} {value:.1e}" for way, value in far.items())
    assert len(far) == len(ways) and all(value < 1e-2 for value in far.values()), f"{told}; failed: {failed}"
    return f"weights after an epoch, relative to those of plain steps: {told}"


# --- speeds -----------------------------------------------------------------------------------

def pace(work, images: int, device, seconds: float) -> float:
    "Gives images per second of a call that takes some images."
    from kdnb.engine.stopwatch import clock
    for _ in range(3): work()
    start, count = clock(device), 0
    while clock(device) - start < seconds:
        for _ in range(10): work()
        count += 10
    return count * images / (clock(device) - start)


def speeds(device, seconds: float, nets, batch: int) -> dict:
    "Gives images per second of training steps and forward passes, as they are and compiled."
    import torch
    from kdnb.engine.evaluate import autocast
    from kdnb.engine.frozen import frozen
    from kdnb.models.pretrained import network
    images = some_runs()[1].to(device)
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y, precision, found = torch.arange(batch, device=device) % 10, "bf16" if device.type == "cuda" else "fp32", {}
    for name in nets:
        for kind in ("eager", *["compiled"] * (device.type == "cuda")):
            net = network(name, images).to(device, memory_format=torch.channels_last)
            optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
            fixed = frozen(deepcopy(net))
            if kind == "compiled": net.compile(), fixed.compile()
            def step():
                with autocast(device, precision): loss = torch.nn.functional.cross_entropy(net(x).logits.float(), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            def look():
                with torch.no_grad(), autocast(device, precision): fixed(x)
            found |= {f"{name}, {what}, {kind}": round(pace(work, batch, device, seconds)) for what, work in (("train", step), ("forward", look))}
    return found


# --- what is done, and what is kept -------------------------------------------------------------

class Diary:
    "What was done, kept in a file that is written after every job."
    def __init__(self, out: Path, have: Path | None):
        self.path, earlier = out/"done.json", (have or out)/"done.json"
        self.rows = json.loads(earlier.read_text()) if earlier.exists() else {}

    def done(self, name: str) -> bool: return self.rows.get(name, {}).get("ok", False)

    def keep(self, name: str, ok: bool, gave, seconds: float):
        "Writes what a job gave."
        self.rows[name] = {"ok": ok, "gave": gave, "seconds": round(seconds, 1)}
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(f"{'done' if ok else 'NOT DONE'} {name} in {seconds:.0f} s: {gave}", flush=True)


def packed(store: Path, out: Path):
    "Packs results, plans and reports into a file that may come back."
    path = out/"results.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(store.rglob("*")):
            if file.suffix in (".json", ".md", ".csv", ".png") and file.is_file(): archive.add(file, file.relative_to(store))
    if path.stat().st_size > MOST: print(f"{path} is larger than {MOST >> 20} MiB", flush=True)


def unpacked(have: Path, store: Path):
    "Puts results that came back earlier where tables look for them."
    store.mkdir(parents=True, exist_ok=True)
    path = have/"results.tar.gz"
    if path.exists():
        with tarfile.open(path) as archive: archive.extractall(store, filter="data")


@contextmanager
def stopped_at(deadline: float):
    "Interrupts what is done at a time, as Ctrl-C would: a table writes its checkpoint first."
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in a shell's background
    if ignored: signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.monotonic()), 20)  # once more, should a checkpoint take longer
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if ignored: signal.signal(signal.SIGINT, signal.SIG_IGN)


def jobs(given: argparse.Namespace, device, store: Path) -> dict:
    "Gives all jobs, by name, in their order."
    small = given.tiny
    found = {f"checks {work.__name__.removeprefix('check_')}": partial(work, device)
             for work in (check_views, check_losses, check_lockstep, check_ways)}
    found["speeds networks"] = partial(speeds, device, *((0.2, ("resnet8",), 16) if small else (3, ("resnet18", "resnet50", "resnet20", "resnet56"), 128)))
    ways = {"students": 2, "steps": 2, "batch": 16, "rounds": 1, "device": "cpu"} if small else {}
    def measured():
        run_notebook("benchmarks/gpu", reports=str(given.out), **ways)
        return (given.out/"benchmarks/gpu.md").read_text().split("\n\n")[2]
    found["speeds ways"] = measured
    for name, words in TABLES:
        words = words | {"reports": str(store), "device": str(device)} | (TINY if small else {})
        said = " ".join(f"{key}={value}" for key, value in words.items() if key in ("loss", "teacher"))
        found[f"runs {name} {said}".strip()] = lambda name=name, words=words: (run_notebook(f"tables/{name}", **words), "finished")[1]
    chosen = {name: work for name, work in found.items() if name.startswith(tuple(given.only.split(",")))}
    if not chosen: sys.exit(f"--only {given.only} chooses none of: {', '.join(found)}.")
    return chosen


def attempt(name: str, work, diary: Diary, deadline: float):
    "Does a job until a time; keeps what it gave, or why it gave nothing."
    start = time.monotonic()
    try:
        with stopped_at(deadline): gave, ok = work(), True
    except KeyboardInterrupt: gave, ok = "out of time", False
    except Exception as error:
        traceback.print_exc()
        gave, ok = f"{type(error).__name__}: {error}".splitlines()[0], False
    diary.keep(name, ok, gave, time.monotonic() - start)


def asked() -> argparse.Namespace:
    "Reads the command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what comes back")
    parser.add_argument("--data", type=Path, help="folder of data sets, as KDNB_DATA")
    parser.add_argument("--have", type=Path, help="folder of what came back earlier")
    parser.add_argument("--work", type=Path, default=Path.home()/"kdnb-work", help="folder for checkpoints and results")
    parser.add_argument("--minutes", type=float, default=9.0, help="no job goes on longer than this")
    parser.add_argument("--only", default="checks,speeds,runs", help="how the names of jobs begin, joined by commas")
    parser.add_argument("--tiny", action="store_true", help="try everything out on a CPU")
    return parser.parse_args()


def main():
    deadline, given = time.monotonic(), asked()
    deadline += 60 * given.minutes
    given.out, given.work = given.out.resolve(), given.work.resolve()
    for folder in (given.out, given.work): folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"KDNB_CACHE": str(given.work/"cache"), "MPLBACKEND": "agg"} | ({"KDNB_DATA": str(given.data.resolve())} if given.data else {})
    if given.have: unpacked(given.have, given.work/"results")
    import kdnb  # noqa: F401  (before torch, whose waiting threads it sets up)
    import torch
    if not given.tiny and not torch.cuda.is_available(): sys.exit("There is no GPU here; --tiny tries everything out on a CPU.")
    device, diary = torch.device("cpu" if given.tiny else "cuda"), Diary(given.out, given.have)
    for name, work in jobs(given, device, given.work/"results").items():
        if diary.done(name): continue
        if time.monotonic() > deadline - 5: print(f"no time left for {name}"); continue
        attempt(name, work, diary, deadline)
        packed(given.work/"results", given.out)
    missing = [name for name in jobs(given, device, given.work/"results") if not diary.done(name)]
    print(f"{len(missing)} left: {', '.join(missing)}" if missing else "everything is done", flush=True)
    sys.exit(bool(missing))


if __name__ == "__main__": main()
