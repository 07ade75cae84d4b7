"The ledger of claims: complete, backed by runs and proofs that exist, and changed by new runs alone."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kdnb.analysis.claims import EQUAL, FAILS, HOLDS, NOISE, UNKNOWN, claims_table, contrasts, in_print, inside, numbers, selected
from kdnb.analysis.adversarial import KEPT
from kdnb.analysis.classes import ACROSS, APART
from kdnb.analysis.evidence import HERE, Evidence, evidence
from kdnb.analysis.layers import DEBIASED
from kdnb.analysis.ledger import ELSEWHERE, KINDS, STEPS, among_many, claims_text, front_counts, front_text, ledger, linked, settled, slips, timings, to_run
from kdnb.analysis.logits import difference_numbers
from kdnb.analysis.verdict import (CONTRADICTED, COUNTED, DECIDED, DIRECTION, LEVEL, NO_COMMAND, NOT_RUN, OPEN, OPPOSITE, PROVED, SAME, SEPARATE,
                                   TIMED, VERDICTS, verdict_p)
from kdnb.data.images import load_images
from kdnb.experiments.crd_benchmark import CRDBenchmark
from kdnb.experiments.experiment import Table
from kdnb.experiments.hakd import PRESETS, HAKD
from kdnb.experiments.lee2025 import Lee2025
from kdnb.report.example import diverged, result_of
from kdnb.report.measures import About, write_measures
from kdnb.store import Store

ROOT = Path(__file__).resolve().parents[2]


@lru_cache
def images(name, classes=10):
    "A stand-in for a data set: its name and shape, and no images worth looking at; of \"held NAME\" some are held out."
    digits, x = load_images("digits").split(validation=200, train=100, test=100), torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    held = 100 * name.startswith("held ")
    return replace(digits, name=name.removeprefix("held "), train_x=x, test_x=x, val_x=x[:held], val_y=digits.val_y[:held], mean=(0.5,) * 3, std=(0.5,) * 3,
                   classes=tuple(map(str, range(classes))))


def write(folder, plan, score, outcome="finished", note="", changes={}):
    "Puts a plan into a store with made-up results: `score` gives a run's accuracy by its entry, or None."
    store = Store(folder)
    plan = replace(plan, note=note, changes=changes)
    for entry in plan.entries:
        run, value = entry.run, score(entry)
        if value is None: continue
        record = result_of(run.config, float(value), key=run.key, objective=run.root.objective)
        store.finish(diverged(record) if outcome != "finished" and entry.role == "distilled" else record)
    store.add_plan(plan.record)


def supcon_plan(preset="paper", data="cifar10", seeds=5, loss="supcon", **more):
    table = Table("cifar10_supcon", "lee2025", ("table1", "table2"), "Table", {"supcon": "SupConKD"}, dataset="cifar10")
    return Lee2025(table=table, loss=loss, preset=preset, seeds=seeds, device="cpu", precision="bf16", **more).plan(images(data))


def spread(folder, by, preset, sd, seeds=3, **more):
    "Made-up results in which SupConKD gains `by` on average, with a spread over seeds."
    def score(entry):
        if entry.role == "student": return 93 if entry.run.objective == "supcon" else None
        if entry.row == "supcon" and entry.run.root.objective == "supcon": return 93 + by + sd * (entry.run.seed - 1)
    write(folder, supcon_plan(preset, seeds=seeds), score, **more)


def gain(folder, by, preset="paper", note="", outcome="finished", changes={}, first=0, **more):
    "Made-up results, from a first seed on, in which SupConKD from the SupCon teacher gains `by` over the student alone."
    def score(entry):
        if entry.run.seed < first: return None
        base = 93 + 0.1 * entry.run.seed
        if entry.role == "student": return base if entry.run.objective == "supcon" else None
        if entry.row == "supcon" and entry.run.root.objective == "supcon": return base + by + 0.02 * (entry.run.seed % 2)
    write(folder, supcon_plan(preset, **more), score, outcome, note, changes)


def book_of(reports): return ledger(evidence(Store(reports)))
def row(reports, key): return book_of(reports).set_index("id").loc[key]


def test_all_claims_are_listed():
    written = pd.read_csv(ROOT/"reports/claims.csv", keep_default_na=False)
    claims = claims_table("claims")
    assert len(claims) == claims.id.nunique() >= 127
    assert list(written.id) == list(claims.id) and set(written.verdict) <= set(VERDICTS)
    text = (ROOT/"reports/claims.md").read_text()
    assert all(text.count(f"\n| {key} |") == 1 for key in claims.id)
    slip_ids = list(dict.fromkeys(claims_table("slips").id))
    assert slip_ids == [f"I{i:02d}" for i in range(1, len(slip_ids) + 1)] and len(slip_ids) > 62
    assert all(f"\n| {key} |" in text for key in claims_table("slips").id)


def test_every_proof_is_a_cell_that_asserts():
    algebra = claims_table("algebra")
    ids, slip_ids = set(claims_table("claims").id), set(claims_table("slips").id)
    for proof in algebra.itertuples():
        cells = json.loads((ROOT/proof.notebook).read_text())["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and proof.cell in "".join(c["source"])]
        assert len(code) == 1 and "assert" in code[0], (proof.notebook, proof.cell)
        assert set(filter(None, proof.claim.split(";"))) <= ids and set(filter(None, proof.slip.split(";"))) <= slip_ids
        assert proof.verdict in DECIDED and not proof.verdict.endswith("in part")
        assert proof.because or proof.verdict.endswith("holds")


@pytest.mark.parametrize("folder", ["reports", "made up"])
def test_no_verdict_without_evidence(folder, tmp_path):
    reports = ROOT/"reports"
    if folder == "made up":
        reports = tmp_path
        gain(reports, 1.2)
    book = book_of(reports)
    for claim in book.itertuples():
        paths = list(filter(None, claim.evidence.split(";")))
        if claim.verdict in (NOT_RUN, NO_COMMAND): assert not paths
        elif claim.verdict != OPEN: assert paths
        assert all((ROOT if path.startswith("nbs/") else reports).joinpath(path).is_file() for path in paths)
        if claim.verdict == OPEN: assert claim.statement
    if folder == "made up": assert (book.verdict == HOLDS).any()


def test_new_runs_change_their_row_and_no_other(tmp_path):
    before = book_of(tmp_path)
    gain(tmp_path, 1.2)
    after = book_of(tmp_path)
    changed = set(after.id[(after.verdict != before.verdict) | (after.scaled != before.scaled)])
    assert changed == {"L06"}
    now = after.set_index("id").loc["L06"]
    assert now.verdict == HOLDS and now.n == 5 and now.protocol == "paper" and len(now.evidence.split(";")) == 10
    assert abs(now.difference - 1.208) < 1e-9 and now.low < now.difference < now.high and now.detectable > 0 and now.seeds >= 2
    assert linked(now.evidence, now.tables) == "[cifar10_supcon](cifar10_supcon/table.md)"


@pytest.mark.parametrize("by,options,verdict", [
    (0.5, {}, DIRECTION), (0.0, {}, CONTRADICTED), (-1.0, {}, CONTRADICTED), (1.2, {"seeds": 1}, SEPARATE), (1.2, {"seeds": 4}, SEPARATE),
    (1.2, {"seeds": 7}, HOLDS), (1.2, {"seeds": 10}, HOLDS), (1.2, {"outcome": "diverged"}, CONTRADICTED)])
def test_the_verdict_follows_the_runs(tmp_path, by, options, verdict):
    gain(tmp_path, by, **options)
    now = row(tmp_path, "L06")
    assert now.verdict == verdict and now.scaled == ""
    assert now.n == {7: 5}.get(options.get("seeds", 5), options.get("seeds", 5)), "five or ten seeds are looked at"


SMALLER = [{"preset": "fast"}, {"preset": "quick"}, {"changes": {"size": 16}}, {"preset": "fast", "changes": {"epochs": 3}}, {"data": "part of cifar10"},
           {"note": "part of the images", "changes": {"size": 16}}, {"data": "stl10"}, {"data": "held cifar10"}]


@pytest.mark.parametrize("options", SMALLER)
def test_a_verdict_needs_the_papers_setting_and_smaller_runs_are_scaled_evidence(tmp_path, options):
    before = row(tmp_path, "L06")
    gain(tmp_path, 1.2, **options)
    now = row(tmp_path, "L06")
    assert now.verdict == before.verdict == NOT_RUN and now.n == now.evidence == "" and now.scaled == SAME
    assert now.scaled_n == 5 and now.scaled_low < now.scaled_difference < now.scaled_high and now.scaled_detectable > 0
    assert "epochs" in now.setting and options.get("data", "cifar10").removeprefix("held ") in now.setting and len(now.scaled_evidence.split(";")) == 10
    book = book_of(tmp_path)
    text = claims_text(book, slips(book))
    line = next(line for line in text.splitlines() if line.startswith("| L06 "))
    assert "| **not run** | same direction: " in line and "n = 5: +1.21 [" in line and "MDE" in line


def shared_teacher(folder, above):
    "Made-up results of five students of one teacher that is `above` points better than they are."
    def score(entry):
        if entry.role == "teacher": return 75 + above if entry.run.seed == 0 else None
        return 75 + 0.1 * entry.run.seed if entry.row == "dcd+kd" else None
    write(folder, pair_plan("dcd_table1", ("wrn_40_2-wrn_16_2",), "dcd+kd"), score, changes={"teachers": 1, "evaluations": 240})


def test_one_teacher_of_all_students_stands_beside_each_of_them(tmp_path):
    shared_teacher(tmp_path, -2.0)
    now = row(tmp_path, "D05")
    assert now.n == 5 and abs(now.difference - 2.2) < 1e-9 and now.protocol == "as-published, paper"


@pytest.mark.parametrize("by,sd,word", [(-1.2, 0.01, OPPOSITE), (0.05, 0.2, "not separable (MDE "), (0.4, 1.5, "cannot speak (MDE ")])
def test_scaled_evidence_has_words_of_its_own(tmp_path, by, sd, word):
    spread(tmp_path, by, "fast", sd)
    now = row(tmp_path, "L06")
    assert now.scaled.startswith(word) and now.verdict == NOT_RUN
    if "speak" in word: assert now.scaled.endswith("above 1.16)") and now.scaled_detectable > 1.16


def test_handwritten_digits_and_single_seeds_say_nothing(tmp_path):
    gain(tmp_path, 1.2, "quick", data="digits")
    gain(tmp_path, 1.2, "fast", seeds=1)
    assert (book_of(tmp_path).scaled == "").all()


def test_a_shorter_run_counts_where_half_its_length_says_the_same(tmp_path):
    def lengths(folder, *gained):
        for epochs, by in gained: gain(folder, by, "fast", epochs=epochs, changes={"epochs": epochs})
        return row(folder, "L06")
    now = lengths(tmp_path/"converged", (20, 1.2), (10, 1.18))
    assert now.verdict == HOLDS and "20 epochs, converged: 10 give the same" in now.protocol
    assert lengths(tmp_path/"growing", (20, 1.2), (10, 0.6)).verdict == lengths(tmp_path/"one", (20, 1.2)).verdict == NOT_RUN


def test_seeds_that_were_added_after_a_first_look_are_no_evidence(tmp_path):
    gain(tmp_path, 1.2, "fast", seeds=3)
    before = row(tmp_path, "L06")
    gain(tmp_path, -9.0, "fast", seeds=6, first=3)
    after = row(tmp_path, "L06")
    assert (before.scaled_n, before.scaled) == (after.scaled_n, after.scaled) == (3, SAME)


def test_the_nearest_of_several_settings_is_told_first(tmp_path):
    gain(tmp_path, -1.2, "quick", data="stl10")
    gain(tmp_path, 1.2, "fast")
    now = row(tmp_path, "L06")
    assert now.scaled == SAME and now.setting.startswith("cifar10") and now.scaled_also.startswith("stl10") and now.scaled_also.endswith(OPPOSITE)


@pytest.mark.parametrize("options", [{"changes": {"tau": 0.5}, "loss": "supcon@tau=0.5"}, {"loss": "supcon@tau=0.5"}])
def test_runs_of_another_row_change_nothing(tmp_path, options):
    before = book_of(tmp_path)
    gain(tmp_path, 1.2, **options)
    pd.testing.assert_frame_equal(book_of(tmp_path), before)


def test_a_verdict_has_to_stand_among_all_claims_of_its_paper():
    "Twenty claims without any difference behind them: one paper of twenty at most has a verdict."
    noise, wrong = np.random.default_rng(0).normal(0, 0.2, (100, 20, 5, 1)), 0
    for paper in noise:
        p = [verdict_p(claim) for claim in paper]
        alone = [HOLDS if one < LEVEL else SEPARATE for one in p]
        wrong += (among_many(pd.DataFrame({"verdict": alone, "p": p}), 20).verdict == HOLDS).any()
    assert wrong <= 5
    one = pd.DataFrame({"verdict": [HOLDS, NOT_RUN], "p": [0.004, ""]})
    assert list(among_many(one, 5).verdict) == [HOLDS, NOT_RUN] and list(among_many(one, 10).verdict) == [SEPARATE, NOT_RUN]


def test_a_weak_verdict_falls_among_many(tmp_path):
    spread(tmp_path, 1.2, "paper", 0.4, seeds=5)
    now, algebra = row(tmp_path, "L06"), settled()
    family = sum(to_run(claim, algebra) for claim in claims_table("claims").itertuples() if claim.paper == "lee2025")
    assert now.verdict == SEPARATE and now.p / family < LEVEL <= now.p and family > 5


def test_what_holds_by_less_than_about_equal_holds_within_noise():
    cells, counts = numbers(), {HOLDS: 0, NOISE: 0}
    said = ledger(Evidence()).set_index("id").inside
    for claim in claims_table("claims").itertuples():
        if said[claim.id] not in counts or claim.relation in ("diverges", "eq", "mean_eq", "near_best"): continue
        values = [c.value(in_print) * (100 if c.cells[0].metric == "cka" else 1) for c in contrasts(claim, cells)]
        smallest = min(v for v in values if v > 0)
        assert (said[claim.id] == NOISE) == (smallest < EQUAL - 1e-9), (claim.id, smallest)
        counts[said[claim.id]] += 1
    assert min(counts.values()) > 10


def test_what_needs_data_that_no_notebook_trains_on_has_no_command():
    book, claims = ledger(Evidence()).set_index("id"), claims_table("claims").set_index("id")
    elsewhere = claims.dataset.map(lambda words: bool(ELSEWHERE & set(words.replace("->", ";").split(";"))))
    open_ones = ~book.verdict.isin([*DECIDED, OPEN])
    assert set(book.index[book.verdict == NO_COMMAND]) == set(book.index[open_ones & elsewhere])
    assert {"L10", "C05", "C14", "D18"} <= set(book.index[book.verdict == NO_COMMAND]) and book.verdict["L06"] == NOT_RUN


def test_hint_and_fitnet_are_one_row(tmp_path):
    p = HAKD(table=Table("hakd_table1", "hakd", ("table1",), "Table", {"pca_gl": "PCA + GL"}), loss="pca_gl,fitnet", preset="paper", seeds=5, device="cpu", precision="bf16")
    score = {"pca_gl": 50, "fitnet": 38}
    write(tmp_path, p.plan(images("stl10 occluded")), lambda entry: score.get(entry.row, 70) + 0.1 * entry.run.seed)
    assert row(tmp_path, "H01").difference == 12


def look_inside(folder, preset="paper", **values):
    "Made-up similarities of students with their SupCon teacher, by loss, with the results of their runs."
    plan, rows = supcon_plan(preset, loss=",".join(values)), []
    write(folder, plan, lambda entry: 93 if entry.role == "distilled" else None)
    for entry in plan.entries:
        if entry.row not in values or entry.run.root.objective != "supcon": continue
        rows.append({"data": "cifar10", "preset": preset, "changes": "", "protocol": "", "teacher": "resnet50", "student": "resnet18", "objective": "supcon",
                     "method": entry.row, "measure": DEBIASED, "place": "stage 4", "seed": entry.run.seed,
                     "value": values[entry.row] + 0.01 * entry.run.seed, "key": entry.run.key})
    write_measures(folder/"lee2025_fig2", About("Similarity"), rows)


def test_a_measure_inside_networks_changes_its_row(tmp_path):
    before = book_of(tmp_path).set_index("id")
    look_inside(tmp_path, cosine=0.9, gram=0.8, supcon=0.6)
    after = book_of(tmp_path).set_index("id")
    assert "L22" in set(after.index[after.statement != before.statement]) and after.loc["L22"].verdict == OPEN
    assert "By the reading here, holds: paper, n = 5: +25.00" in after.loc["L22"].statement and after.loc["L22"].evidence == "lee2025_fig2/measures.csv"
    look_inside(tmp_path, gram=0.5)
    assert f"here, {CONTRADICTED}: paper, n = 5: +10.00" in row(tmp_path, "L22").statement


def test_the_similarity_of_classes_is_evidence_for_the_weights_beside_none(tmp_path):
    table = Table("supcrd", "supcrd", (), "Table", {"supcrd": "SupCRD"}, ("resnet56-resnet20",), dataset="cifar10")
    plan = CRDBenchmark(table=table, loss="supcrd,supcrd_lw@variant=a", pair="all", protocol="matched", preset="fast", seeds=3, device="cpu", precision="bf16").plan(images("cifar10"))
    write(tmp_path, plan, lambda entry: 90)
    where = {"data": "cifar10", "preset": "fast", "changes": "", "protocol": "matched", "teacher": "resnet56", "student": "resnet20", "objective": "ce", "measure": APART, "place": ACROSS}
    rows = [where | {"method": entry.row, "seed": entry.run.seed, "value": 0.2 + 0.03 * ("lw" in entry.row) + 0.01 * entry.run.seed, "key": entry.run.key}
            for entry in plan.entries if entry.role == "distilled"]
    write_measures(tmp_path/"supcrd_classes", About("Similarity"), rows)
    now = row(tmp_path, "S05")
    assert now.verdict == NOT_RUN and now.scaled == SAME and abs(now.scaled_difference - 3) < 1e-9 and now.scaled_evidence == "supcrd_classes/measures.csv"


def test_right_answers_under_attack_are_told_under_a_reading(tmp_path):
    p = HAKD(table=Table("hakd_table1", "hakd", ("table1",), "Table", {"pca_gl": "PCA + GL"}), loss="pca_gl,hint", preset="paper", seeds=5, device="cpu", precision="bf16")
    plan = p.plan(images("cifar10 as is"))
    write(tmp_path, plan, lambda entry: 80)
    where = {"data": "cifar10 as is", "preset": "paper", "changes": "", "protocol": "", "teacher": HERE["vit_b_16"], "student": HERE["resnet50"],
             "objective": "ce", "measure": f"{KEPT} PGD", "place": "eps 2/255"}
    rows = [where | {"method": name, "seed": entry.run.seed, "value": value + 0.001 * entry.run.seed, "key": entry.run.key}
            for entry in plan.entries for net, name, value in (("vit", "pca_gl", 0.5), ("wide", "hint from cnn", 0.45))
            if entry.role == "distilled" and entry.teacher.startswith(net) and entry.row == name.split()[0]]
    write_measures(tmp_path/"hakd_noise", About("Noise"), rows)
    now = row(tmp_path, "H09")
    assert now.verdict == OPEN and "By the reading here, holds: paper, n = 5: +5.00" in now.statement


def test_measures_of_runs_that_are_not_comparable_change_nothing(tmp_path):
    look_inside(tmp_path, "quick", cosine=0.9, gram=0.8, supcon=0.6)
    assert row(tmp_path, "L22").statement == row(tmp_path/"nothing", "L22").statement


@pytest.mark.parametrize("data, claim, verdict", [
    ("stl10 occluded", "H01", HOLDS), ("stl10 as is", "H01", NOT_RUN), ("stl10 occluded (test only)", "H01", NOT_RUN),
    ("fashion_mnist textured", "H04", CONTRADICTED)])
def test_runs_across_architectures_are_judged_on_their_own_data(tmp_path, data, claim, verdict):
    p = HAKD(table=Table("hakd_table1", "hakd", ("table1",), "Table", {"pca_gl": "PCA + GL"}), loss="pca_gl,hint", preset="paper", seeds=5, device="cpu", precision="bf16")
    score = {"pca_gl": 50, "hint": 38}
    write(tmp_path, p.plan(images(data)), lambda entry: score.get(entry.row, 70) + 0.1 * entry.run.seed)
    assert row(tmp_path, claim).verdict == verdict


def test_the_networks_of_hakd_are_those_of_its_preset():
    assert {PRESETS["paper"].transformer, PRESETS["paper"].cnn, PRESETS["paper"].student} <= set(HERE.values())


def test_shorter_runs_stand_beside_the_verdict_and_do_not_change_it(tmp_path):
    gain(tmp_path, -1.2, "fast")
    gain(tmp_path, 1.2)
    now = row(tmp_path, "L06")
    assert now.verdict == HOLDS and now.protocol == "paper" and now.scaled == OPPOSITE


def test_of_several_weights_validation_chooses(tmp_path):
    gain(tmp_path, 1.2)
    gain(tmp_path, -33.0, weight=7.0)
    assert abs(row(tmp_path, "L06").difference - 1.208) < 1e-9


PAIRS = ("resnet56-resnet20", "resnet110-resnet32", "resnet32x4-resnet8x4", "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "vgg13-vgg8", "resnet32x4-shufflenet_v1",
         "wrn_40_2-shufflenet_v1", "vgg13-mobilenet_v2", "resnet50-mobilenet_v2", "resnet32x4-shufflenet_v2")


def pair_plan(name, pairs, loss, seeds=5):
    "A plan of the benchmark on CIFAR-100."
    table = Table(name, name[:3], ("table1",), "Table", {"kd": "KD"}, pairs)
    return CRDBenchmark(table=table, loss=loss, pair="all", preset="paper", seeds=seeds, device="cpu", precision="bf16").plan(images("cifar100", 100))


def test_all_pairs_must_be_run_and_both_protocols_are_judged(tmp_path):
    plan = pair_plan("ckd_table1", PAIRS, "kd,ckd")
    def first(entry): return f"{entry.teacher}-{entry.student}" == PAIRS[0]
    def later(entry):
        bonus = {"ckd": 2.5 if entry.protocol == "as-published" else 0.02}.get(entry.row, 0)
        return None if first(entry) else 70 + 0.1 * entry.run.seed * (entry.row == "ckd") + bonus
    write(tmp_path, plan, later)
    before = row(tmp_path, "C01")
    assert before.verdict == NOT_RUN and before.scaled == SAME and "as-published, cifar100" in before.setting
    write(tmp_path, plan, lambda entry: 70 + 0.1 * entry.run.seed + (entry.row == "ckd") if first(entry) else None)
    now = row(tmp_path, "C01")
    assert now.protocol == "as-published, paper" and now.verdict == HOLDS and now.n == 5
    assert now.scaled == "", "all pairs were run: there is a verdict, and single pairs of it are no evidence of their own"
    assert now.also.startswith("matched, paper: ") and now.also != f"matched, paper: {HOLDS}"
    assert row(tmp_path, "C03").verdict in (CONTRADICTED, DIRECTION)


def test_teachers_and_options_of_a_sweep_are_told_apart(tmp_path):
    pair = ("wrn_40_2-shufflenet_v1",)
    write(tmp_path, pair_plan("dcd_table1", pair, "dcd+kd"), lambda entry: {"teacher": 75.6, "dcd+kd": 76.7}.get(entry.row, 70) + 0.01 * entry.run.seed)
    write(tmp_path, pair_plan("dcd_fig5", pair, "dcd@weight=5+kd,dcd@alpha=0.1+kd"), lambda entry: 10.0 if "@" in entry.row else None)
    now = row(tmp_path, "D06")
    assert now.verdict == HOLDS and abs(now.difference - 1.1) < 1e-9


def test_slips_are_recomputed():
    found = slips(book_of(ROOT/"reports"))
    assert len(found) == len(claims_table("slips")) and (found.recomputed != "").all()
    assert not found.recomputed.str.contains("nan|–").any()
    assert (found.recomputed == "of words, nothing to compute").sum() < 20
    assert (found.recomputed[found.recomputed == "proved"].index.map(lambda i: found.proof[i] != "")).all()


def test_the_committed_ledger_is_what_the_notebook_writes(tmp_path):
    (tmp_path/"reports").mkdir()
    for kind in ("runs", "plans"):
        if (ROOT/"reports"/kind).exists(): shutil.copytree(ROOT/"reports"/kind, tmp_path/"reports"/kind)
    for path in (ROOT/"reports").glob("*/measures.csv"):
        (tmp_path/"reports"/path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path/"reports"/path.parent.name)
    command = [sys.executable, "-m", "papermill", str(ROOT/"nbs/tables/claims.ipynb"), "out.ipynb", "--no-progress-bar", "-p", "reports", "reports"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("claims.md", "claims.csv"): assert (tmp_path/"reports"/name).read_bytes() == (ROOT/"reports"/name).read_bytes()
    assert (tmp_path/"reports/fig_claims.png").stat().st_size > 5000
    done = subprocess.run([*command[:-2], "report", "x"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "unknown parameter 'report'" in done.stderr + done.stdout


def test_numbers_of_the_ledger_are_finite():
    book = book_of(ROOT/"reports")
    assert np.isfinite(pd.to_numeric(book.difference[book.difference != ""])).all()


def test_the_measures_that_claims_ask_for_are_those_that_reports_have():
    known = {metric for metric, _ in difference_numbers((torch.eye(3), torch.eye(3)))} | {DEBIASED, "shared nearest 10", APART, f"{KEPT} PGD"}
    metrics = {cell.metric for claim in claims_table("claims").itertuples() for side in (claim.left, claim.right) for part in side.split(" ; ")
               if part.startswith("run:") for cell in selected(part, claim.paper, []) if "place=" in cell.setting}
    assert len(metrics) == 5 and metrics <= known


def test_hostile_names_of_tables_and_texts_make_no_markup_in_the_ledger():
    name = "<script>] | `x` ](y) ![](x)\n# b"
    text = linked("nbs/losses/21_norm.ipynb", name)
    assert "<" not in text and "\n" not in text and len(re.findall(r"(?<!\\)\]\(", text)) == 2
    book = ledger(Evidence())
    book.loc[0, ["claim", "place", "statement", "recomputed", "inside"]], book.loc[0, "tables"] = name, name
    written = claims_text(book.assign(paper=book.paper.replace("ckd", name)), slips(ledger(Evidence())))
    assert "<script" not in written and "\n# b" not in written


READINGS = {"C08": HOLDS, "C18": HOLDS, "C19": HOLDS, "C42": HOLDS, "D09": HOLDS, "D10": HOLDS, "D11": FAILS, "D12": FAILS, "D31": FAILS, "C38": UNKNOWN}


def test_no_claim_is_read_more_strictly_than_its_words():
    "\"Competitive\", \"comparable\", \"slightly below\" and what names two networks hold; \"state of the art\" and \"outperforms other methods\" do not."
    claims, cells = claims_table("claims").set_index("id", drop=False), numbers()
    assert {key: inside(claims.loc[key], cells)[0] for key in READINGS} == READINGS
    assert all(claims.note[key] for key in READINGS if READINGS[key] == HOLDS)


def test_what_no_paper_says_is_marked_as_ours():
    claims, book = claims_table("claims").set_index("id"), ledger(Evidence()).set_index("id")
    assert set(claims.index[claims.ours != ""]) == {"L28", "D11", "D15", "H10"} == set(book.index[book.place.str.endswith("(ours)")])


@pytest.mark.parametrize("key, word", [("S08", COUNTED["false"]), ("D21", COUNTED["in part"]), ("H12", COUNTED["holds"]), ("C40", COUNTED["holds"]),
                                       ("C45", PROVED["false"]), ("C46", PROVED["holds"]), ("S02", PROVED["false"]), ("S04", PROVED["in part"]), ("S07", PROVED["in part"]),
                                       ("C38", PROVED["in part"]), ("L28", PROVED["holds"])])
def test_what_was_counted_or_read_is_not_called_algebra_and_what_is_partly_true_is_said_to_be(key, word):
    now = ledger(Evidence()).set_index("id").loc[key]
    assert now.verdict == word and now.evidence.startswith("nbs/")
    if word.endswith("in part"): assert "True: " in now.statement and "False: " in now.statement


@pytest.mark.parametrize("key, words", [
    ("C45", ["0 and (B-1)/B", "1/2 and B/(B+1)", "no reading gives the printed pair"]), ("S07", ["standard SupCon", "inside the logarithm"]),
    ("S04", ["At equal similarity"]), ("S02", ["never rises", "two classes"]), ("C46", ["sample-wise", "C31"])])
def test_statements_say_both_readings(key, words):
    statement = ledger(Evidence()).set_index("id").statement[key]
    assert all(word in statement for word in words)


def test_what_two_papers_say_or_a_missing_control_is_no_contradiction_of_a_paper():
    table = claims_table("slips")
    assert table.groupby("id").kind.nunique().max() == 1 and set(table.kind) == set(KINDS)
    others = set(table.id[table.kind != "itself"])
    assert others == {"I13", "I29", "I33", "I35", "I38", "I40", "I54", "I55", "I61", "I62"}
    text = (ROOT/"reports/claims.md").read_text()
    parts = re.split(r"\n## ", text)
    for kind, heading in KINDS.items():
        own = next(part for part in parts if part.startswith(heading))
        assert set(re.findall(r"\n\| (I\d\d) \|", own)) == set(table.id[table.kind == kind])


def test_the_front_page_counts_what_the_ledger_has():
    book = pd.read_csv(ROOT/"reports/claims.csv", keep_default_na=False)
    text, table = front_text(book), front_counts(book).set_index("paper")
    assert table.loc["all"].sum() == 2 * len(book) and (table.drop(index="all").sum() == table.loc["all"]).all()
    for count, words in (((book.inside == NOISE).sum(), "of them by less"), ((book.verdict == NO_COMMAND).sum(), "need data"), (book.verdict.isin(DECIDED).sum(), "are decided"),
                         (claims_table("slips").drop_duplicates("id").kind.eq("itself").sum(), "places a paper")):
        assert re.search(rf"\b{count} {words}", text) or f"{count} are" in text, words
    assert text in (ROOT/"README.md").read_text() and text in (ROOT/"reports/claims.md").read_text()
    typed = "".join("".join(cell["source"]) for cell in json.loads((ROOT/"nbs/index.ipynb").read_text())["cells"])
    assert not re.search(r"\d+ (claims|places|of \d+ claims)", typed)
    assert front_text(book.assign(verdict=HOLDS)) != text


def timing(folder, *rows):
    "A report on timings, of ratios with their lowest and highest."
    frame = pd.DataFrame([{"benchmark": "step", "pair": "resnet32x4-resnet8x4", "case": case, "against": "ckd", "ratio": ratio, "lowest": low, "highest": high,
                           "rounds": 5, "machine": machine} for machine, case, ratio, low, high in rows])
    frame.to_csv(folder/"steps.csv", index=False)
    return timings(folder/"steps.csv").query("claim == 'C39'")


CPU, GPU = "AMD EPYC (AVX2), 1 thread(s), torch 2.13.0, Python 3.11.7", "NVIDIA H100"


def test_timings_settle_a_claim_where_all_rounds_agree_and_name_the_machine(tmp_path):
    found = timing(tmp_path, (CPU, "reviewkd", 2.0, 1.9, 2.2), (CPU, "crd", 1.1, 1.0, 1.2))
    assert list(found.verdict) == [TIMED["holds"], TIMED["false"]]
    assert all("AMD EPYC (AVX2), 1 thread(s)" in because and "5 rounds" in because and "torch" not in because for because in found.because)
    assert len(timing(tmp_path, (CPU, "crd", 1.6, 1.4, 1.7))) == 0, "rounds on both sides of a bound settle nothing"
    assert len(timings(tmp_path/"nothing.csv")) == 0


def test_a_gpu_that_was_measured_counts_before_a_processor(tmp_path):
    found = timing(tmp_path, (GPU, "crd", 2.1, 2.0, 2.2), (CPU, "crd", 1.1, 1.0, 1.2))
    assert list(found.verdict) == [TIMED["holds"]] and GPU in found.because.iloc[0]


def test_claims_about_time_are_decided_by_what_was_measured():
    assert STEPS.exists() and {"C39", "L27", "D22"} <= set(timings().claim)
    book = ledger(Evidence()).set_index("id")
    for key in ("C39", "L27", "D22"):
        now = book.loc[key]
        assert now.verdict in TIMED.values() and "nbs/benchmarks/steps.ipynb" in now.evidence
        assert re.search(r"\d\.\d\d times, \d+\.\d\d to \d+\.\d\d in \d rounds, ", now.statement) and "thread" in now.statement
    table = claims_table("timing")
    assert (table.low.astype(float) < table.high.astype(float)).all() and set(table.claim) <= set(claims_table("claims").id)
