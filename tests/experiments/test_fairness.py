"What makes a comparison fair is asked by name: what is held out, rates, how many teachers, the size of the images; all test images are tested on; whoever asks for nothing has the runs of before."
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import kdnb.experiments.experiment as experiment
import kdnb.experiments.hakd as hakd
from kdnb.analysis.compare import beside
from kdnb.analysis.evidence import comparable
from kdnb.data.images import load_images
from kdnb.experiments.crd_benchmark import CRDBenchmark
from kdnb.experiments.hakd import HAKD
from kdnb.experiments.lee2025 import Lee2025
from kdnb.registry import InputError
from made import write_levels
from notebooks import TABLES, experiment_of, papermill

NAMES = sorted(path.stem for path in TABLES.glob("*.ipynb") if not path.stem.startswith("_") and path.stem not in ("claims", "weights"))
DIGITS = load_images("digits")
PAIR = {"pair": "resnet14-resnet8"}
THREE = [(Lee2025, "cifar10_supcon", {"loss": "mse,takd"}), (CRDBenchmark, "ckd_table1", {"loss": "ckd,takd", "pair": "resnet56-resnet20"}),
         (HAKD, "hakd_table1", {"loss": "hint", "corruption": "none"})]


def asked(kind, name, **given): return kind(table=experiment_of(name)[1], **{"data": "digits", "device": "cpu"} | given)


def keys(p): return sorted(run.key for run in p.runs)


def many(name, n=3000, test=700):
    "Noise that is called as a data set, with images of 32 x 32 pixels."
    x, y = torch.randint(0, 256, (n + test, 3, 32, 32), dtype=torch.uint8), torch.arange(n + test) % 10
    return replace(DIGITS, name=name, train_x=x[:n], train_y=y[:n], test_x=x[n:], test_y=y[n:], val_x=x[:0], val_y=y[:0], pad=4, mean=(0.5,) * 3, std=(0.25,) * 3, note="")


@pytest.fixture
def noise(monkeypatch):
    "All data sets are noise of 32 x 32 pixels."
    for module in (experiment, hakd): monkeypatch.setattr(module, "load_images", lambda name="auto", wanted="cifar10": DIGITS if name == "digits" else many(wanted if name == "auto" else name))


# ---- the default

@pytest.mark.parametrize("kind,name,more", THREE)
def test_asking_for_what_is_usual_changes_no_key(kind, name, more):
    usual = asked(kind, name, seeds=2, **more)
    assert keys(asked(kind, name, seeds=2, validation=len(usual.images.val_y), size=8, teachers=2, **more)) == keys(usual)
    for given in ({"validation": 100}, {"validation": 0}, {"lr": 0.03}, {"weight_decay": 1e-3}, {"teachers": 1}):
        other = asked(kind, name, seeds=2, **given, **more)
        assert keys(other) != keys(usual), given
        said = {what: value for what, value, _ in other.plans[0].settings}
        assert all(str(value) in " ".join(said.values()) for value in given.values() if value), "the list of choices says so"


# ---- held out

@pytest.mark.parametrize("kind,name,more", THREE)
def test_nothing_held_out_trains_on_all(kind, name, more):
    p = asked(kind, name, seeds=1, validation=0, **more)
    assert (len(p.images.train_y), len(p.images.val_y), len(p.images.test_y)) == (len(DIGITS.train_y), 0, len(DIGITS.test_y))
    said = {what: value for what, value, _ in p.plans[0].settings}
    assert "all are trained on" in said["held out"] and "none is chosen by validation" in said["reported"]
    assert "chosen by validation" in {what: value for what, value, _ in asked(kind, name, **more).plans[0].settings}["reported"]


@pytest.mark.parametrize("preset", ["quick", "fast"])
def test_a_preset_that_keeps_few_holds_out_what_is_asked(noise, preset):
    def sizes(**given): return asked(Lee2025, "cifar10_supcon", data="cifar10", preset=preset, **given).images.identity
    kept = {"quick": 2000, "fast": 2400}[preset]
    assert (sizes().train, sizes().validation) == (kept, 500 if preset == "quick" else 600)
    assert (sizes(validation=0).train, sizes(validation=0).validation) == (2000 if preset == "quick" else 3000, 0)
    assert sizes(validation=1000).validation == 1000
    with pytest.raises(InputError, match="3000 to validate on"): sizes(validation=3000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["quick", "fast", "paper"])
def test_all_test_images_are_tested_on(noise, name, preset):
    kind, table = experiment_of(name)
    p = kind(table=table, data="cifar10", preset=preset, device="cpu")
    assert {images.identity.test for images in p.sets} == {700}


def test_another_division_of_all_images_is_told_and_is_the_whole_data_set():
    told = replace(many("cifar100"), note="This copy of cifar100 has all its images, but not the official division into training and test.")
    assert experiment.held_out(told, "fast", None).name == "cifar100" and experiment.held_out(told, "fast", None).note == told.note
    fewer = replace(told, note="This copy has 3000 training images: these accuracies are not comparable with the paper's.")
    assert experiment.held_out(fewer, "fast", None).name == "part of cifar100"
    assert experiment.held_out(told, "quick", {"train": 100, "validation": 50}).note.startswith("This copy of cifar100 has all its images")


def test_what_is_held_out_tells_sections_and_measures_apart_and_stays_comparable():
    p = asked(CRDBenchmark, "ckd_table1", validation=0, teachers=1)
    assert p.plans[0].changes == {"validation": 0, "teachers": 1} and asked(CRDBenchmark, "ckd_table1", validation=100).changes == {"validation": 100}
    def compares(changes, held=0): return comparable(SimpleNamespace(preset="paper", changes=changes, note="", role="student", sizes=f"900/{held}/100"))
    assert [compares(text) for text in ("", "teachers 1, validation 0", "validation 0", "lr 0.1, validation 0", "teachers 2")] == [True, True, True, False, True]
    assert not compares("", 100) and not compares("validation 100", 100)


# ---- rates

def phases(p): return {(run.net, phase.kind, phase.lr, phase.weight_decay) for run in p.runs for phase in run.phases}


def test_rates_are_those_of_cross_entropy_and_distillation():
    before, after = (phases(asked(Lee2025, "cifar10_supcon", loss="ab", seeds=1, **given)) for given in ({}, {"lr": 0.03, "weight_decay": 1e-3}))
    assert {phase for phase in after if phase[1] in ("contrast", "linear")} == {phase for phase in before if phase[1] in ("contrast", "linear")}
    assert {phase[2:] for phase in after if phase[1] in ("classify", "initial")} == {(0.03, 1e-3)}
    crd = phases(asked(CRDBenchmark, "ckd_table1", loss="ckd,reviewkd", pair="wrn_40_2-shufflenet_v1", seeds=1, lr=0.03, weight_decay=0))
    assert {phase[2:] for phase in crd} == {(0.03, 0.0)}, "of all networks and protocols"
    nets = asked(HAKD, "hakd_table1", corruption="none", preset="paper", lr=0.03, weight_decay=1e-3)
    assert [(nets.phase(net).lr, nets.phase(net).weight_decay) for net in nets.nets.values()] == [(0.003, 0.0), (0.003, 0.0), (0.03, 1e-3)], "tuned gently"
    both = phases(asked(Lee2025, "cifar10_supcon", loss="kd", teacher="ce", seeds=1, optimiser="adamw", lr=0.003))
    assert {phase[2] for phase in both if phase[1] == "classify"} == {0.003}


@pytest.mark.parametrize("given,says", [
    ({"lr": 0}, "lr=0 is not a number above 0"), ({"lr": "x"}, "lr='x'"), ({"weight_decay": -1}, "weight_decay=-1"), ({"weight_decay": True}, "weight_decay=True"),
    ({"lr": 0.1, "optimiser": "adamw@lr=0.01"}, "lr=0.1 is given beside optimiser=adamw@lr=0.01"), ({"weight_decay": 0, "optimiser": "sgd@weight_decay=0.1"}, "weight_decay=0 is given beside"),
    ({"validation": -1}, "validation=-1"), ({"validation": 0.5}, "validation=0.5"), ({"validation": 1297}, "1297 to validate on"), ({"teachers": 0}, "teachers=0"), ({"teachers": True}, "teachers=True"),
    ({"size": 7}, "size=7 is not a whole number of at least 8"), ({"size": 16}, "size=16 does not divide the 8 x 8 pixels of digits"), ({"size": "16"}, "size='16'")])
@pytest.mark.parametrize("kind,name,more", THREE)
def test_a_wrong_value_is_one_sentence(kind, name, more, given, says, tmp_path):
    with pytest.raises(InputError) as caught: asked(kind, name, reports=str(tmp_path/"r"), **given, **more).plans
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) <= 300 and not list(tmp_path.iterdir())


# ---- teachers

@pytest.mark.parametrize("kind,name,more", THREE)
@pytest.mark.parametrize("teachers,seeds", [(1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 1, 0]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_students_learn_from_the_teachers_that_there_are(kind, name, more, teachers, seeds):
    p = asked(kind, name, seeds=5, teachers=teachers, **more)
    entries = p.plans[0].entries
    taught = {(entry.run.seed, entry.run.root.seed) for entry in entries if entry.role == "distilled"}
    assert taught == set(enumerate(seeds))
    assert {entry.run.seed for entry in entries if entry.role in ("teacher", "assistant")} == set(seeds)
    assert {entry.run.seed for entry in entries if entry.role == "student"} == set(range(5))
    between = {(e.run.seed, e.run.root.seed) for e in entries if e.role == "assistant"}
    assert between == ({(s, s) for s in seeds} if "takd" in more["loss"] else set()), "an assistant belongs to its teacher"
    assert p.changes["teachers"] == teachers
    for entry in entries:
        if entry.role == "student" and entry.run.objective == "ce":
            assert {run.seed for run in beside(entry, p.plans[0])} == {seeds[entry.run.seed]}, "measures compare it with the teacher of its seed's students"


# ---- size

def test_the_size_of_images_is_in_name_fingerprint_and_key(noise):
    whole, small = (asked(Lee2025, "cifar10_supcon", data="cifar10", preset="fast", loss="mse", seeds=1, **given) for given in ({}, {"size": 16}))
    assert small.images.shape == (3, 16, 16) and small.images.pad == 2 and small.images.name == "cifar10 at 16 x 16"
    assert not set(keys(whole)) & set(keys(small)) and {run.data.name for run in small.runs} == {"cifar10 at 16 x 16"}
    said = {what: (value, source) for what, value, source in small.plans[0].settings}
    assert said["size"] == ("16 x 16 pixels, by area average", "parameter") and said["data"][1] == "ours" and "size" not in {what for what, *_ in whole.plans[0].settings}
    assert "averaged from 32 x 32 to 16 x 16" in small.plans[0].note
    few = asked(Lee2025, "cifar10_supcon", data="cifar10", preset="quick", size=16).images
    assert few.name == "part of cifar10 at 16 x 16" and "Only 2000 training images" in few.note
    shown = asked(HAKD, "hakd_table1", data="cifar10", preset="fast", size=16).images
    assert shown.name == "cifar10 at 16 x 16 as is"


# ---- as a user runs it

def test_a_fair_table_is_trained_and_says_what_it_is(tmp_path, monkeypatch):
    write_levels(tmp_path/"data", 300, 100)
    monkeypatch.setenv("KDNB_DATA", str(tmp_path/"data"))
    code, output = papermill(tmp_path, "cifar10_supcon", data="cifar10", loss="mse", teacher="ce", epochs=1, seeds=3, batch=32, device="cpu", reports="r",
                             size=16, validation=0, teachers=1, lr=0.02, weight_decay=0.001)
    assert code == 0, output[-3000:]
    table, text = pd.read_csv(tmp_path/"r/cifar10_supcon/table.csv"), (tmp_path/"r/cifar10_supcon/table.md").read_text()
    assert table.set_index("row").n.to_dict() == {"teacher": 1, "student": 3, "mse": 3, "kd": 3} and set(table.sizes) == {"300/0/100"}
    assert set(table.data) == {"part of cifar10 at 16 x 16"} and table.selected.isna().all() and table["last"].notna().all()
    assert "none is chosen by validation" in text and "lr 0.02" in text and "teachers 1" in text
    assert table.set_index("row")["over student alone"].notna()["mse"]
