"The ledger of claims: complete, backed by runs and proofs that exist, and changed by new runs alone."
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from torch import eye

from kdnb.analysis.claims import (CONTRADICTED, DIRECTION, HOLDS, NOT_RUN, OPEN, PROVED, SEPARATE, VERDICTS, claims_table, ledger,
                                  linked, selected, slips)
from kdnb.analysis.inside import DEBIASED, difference_numbers
from kdnb.experiments import across, benchmark, supcon_kd
from kdnb.engine.run import Run, describe, distill
from kdnb.report.measures import write_measures
from kdnb.store import Store

ROOT = Path(__file__).resolve().parents[1]
IMAGES = {name: SimpleNamespace(name=name, train_y=range(45000), val_y=range(5000), test_y=range(10000), fingerprint="0" * 64)
          for name in ("cifar10", "cifar100", "digits")}


COMMON = {"alpha": None, "precision": "bf16", "device": None, "store": None, "force": False, "speed": None, "board": None}


def finish(folder, run, score, outcome="finished", note=""):
    "Puts a made-up result into a store."
    last = {"test": float(score), "epoch": 1}
    Store(folder).finish(run.key, {"config": run.config, "outcome": outcome, "last": last, "best": last, "selected": last, "note": note,
                                   "history": [{"phase": "classify", "epoch": 1, "loss": 1.0, "val": float(score), "test": float(score)}]})


def supcon_runs(preset="paper", data="cifar10", seeds=5, loss="supcon", **changes):
    "The runs of the CIFAR-10 table, by teacher's objective (None: alone), own objective and losses."
    p = supcon_kd.Parameters((loss,), ("ce", "supcon"), IMAGES[data], {}, preset=preset, seeds=seeds, changes=changes, **COMMON)
    return [((run.teacher and run.teacher.objective, run.objective, run.net), run) for run in supcon_kd.plan(p)]


def gain(folder, by, preset="paper", note="", outcome="finished", **more):
    "Made-up results in which SupConKD from the SupCon teacher gains `by` over the student alone."
    for (source, objective, net), run in supcon_runs(preset, **more):
        if (source, objective, net) == (None, "supcon", "resnet18"): finish(folder, run, 93 + 0.1 * run.seed, note=note)
        if source == "supcon": finish(folder, run, 93 + 0.1 * run.seed + by + 0.02 * (run.seed % 2), outcome, note)


def row(reports, key): return ledger(reports).set_index("id").loc[key]


def test_all_claims_are_listed():
    written = pd.read_csv(ROOT/"reports/claims.csv", keep_default_na=False)
    claims = claims_table("claims")
    assert len(claims) == claims.id.nunique() == 127
    assert list(written.id) == list(claims.id) and set(written.verdict) <= set(VERDICTS)
    text = (ROOT/"reports/claims.md").read_text()
    assert all(text.count(f"\n| {key} |") == 1 for key in claims.id)
    assert set(claims_table("slips").id) == {f"I{i:02d}" for i in range(1, 63)}
    assert all(f"\n| {key} |" in text for key in claims_table("slips").id)


def test_every_proof_is_a_cell_that_asserts():
    algebra = claims_table("algebra")
    ids, slip_ids = set(claims_table("claims").id), set(claims_table("slips").id)
    for proof in algebra.itertuples():
        cells = json.loads((ROOT/proof.notebook).read_text())["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and proof.cell in "".join(c["source"])]
        assert len(code) == 1 and "assert" in code[0], (proof.notebook, proof.cell)
        assert set(filter(None, proof.claim.split(";"))) <= ids and set(filter(None, proof.slip.split(";"))) <= slip_ids
        assert proof.verdict in PROVED.values() and (proof.because or proof.verdict == PROVED["holds"])


@pytest.mark.parametrize("folder", ["reports", "made up"])
def test_no_verdict_without_evidence(folder, tmp_path):
    reports = ROOT/"reports"
    if folder == "made up":
        reports = tmp_path
        gain(reports/"cifar10_supcon", 1.2)
    book = ledger(reports)
    for claim in book.itertuples():
        paths = list(filter(None, claim.evidence.split(";")))
        if claim.verdict == NOT_RUN: assert not paths
        elif claim.verdict != OPEN: assert paths
        assert all((ROOT if path.startswith("nbs/") else reports).joinpath(path).is_file() for path in paths)
        if claim.verdict == OPEN: assert claim.statement
    if folder == "made up": assert (book.verdict == HOLDS).any()


def test_new_runs_change_their_row_and_no_other(tmp_path):
    before = ledger(tmp_path)
    gain(tmp_path/"cifar10_supcon", 1.2)
    after = ledger(tmp_path)
    changed = set(after.id[after.verdict != before.verdict])
    assert changed == {"L06"}
    now = after.set_index("id").loc["L06"]
    assert now.verdict == HOLDS and now.n == 5 and now.protocol == "paper" and len(now.evidence.split(";")) == 10
    assert abs(now.difference - 1.208) < 1e-9 and now.low < now.difference < now.high and now.detectable > 0 and now.seeds >= 2
    assert "cifar10_supcon/table.md" in linked(now.evidence)


@pytest.mark.parametrize("by,options,verdict", [
    (0.5, {}, DIRECTION), (0.0, {}, CONTRADICTED), (-1.0, {}, CONTRADICTED), (1.2, {"seeds": 1}, SEPARATE), (1.2, {"seeds": 2}, HOLDS),
    (1.2, {"preset": "fast"}, HOLDS), (1.2, {"outcome": "diverged"}, CONTRADICTED)])
def test_the_verdict_follows_the_runs(tmp_path, by, options, verdict):
    gain(tmp_path/"cifar10_supcon", by, **options)
    assert row(tmp_path, "L06").verdict == verdict


@pytest.mark.parametrize("options", [{"preset": "quick"}, {"data": "digits"}, {"note": "part of the images"}, {"epochs": 3}])
def test_runs_that_do_not_compare_change_nothing(tmp_path, options):
    before = ledger(tmp_path)
    gain(tmp_path/"cifar10_supcon", 1.2, **options)
    pd.testing.assert_frame_equal(ledger(tmp_path), before)


def look_inside(folder, preset="paper", **values):
    "Made-up similarities of students with their SupCon teacher, by loss, with the results of their runs."
    rows = []
    for loss, value in values.items():
        for (source, *_), run in supcon_runs(preset, loss=loss):
            if source != "supcon": continue
            finish(folder/"cifar10_supcon", run, 93)
            rows.append({"section": preset, "teacher": "resnet50", "student": "resnet18", "objective": "supcon", "method": loss, "place": "stage 4",
                         "measure": "linear CKA, debiased", "seed": run.seed, "value": value + 0.01 * run.seed, "key": run.key})
    write_measures(folder/"lee2025_fig2", "Similarity", rows)


def test_a_measure_inside_networks_changes_its_row(tmp_path):
    before = ledger(tmp_path).set_index("id")
    look_inside(tmp_path, cosine=0.9, gram=0.8, supcon=0.6)
    after = ledger(tmp_path).set_index("id")
    assert set(after.index[after.statement != before.statement]) == {"L22"} and after.loc["L22"].verdict == OPEN
    assert "By the reading here, holds: paper, n = 5: +25.00" in after.loc["L22"].statement and after.loc["L22"].evidence == "lee2025_fig2/measures.csv"
    look_inside(tmp_path, gram=0.5)
    assert f"here, {CONTRADICTED}: paper, n = 5: +10.00" in row(tmp_path, "L22").statement


def test_measures_of_runs_that_do_not_compare_change_nothing(tmp_path):
    look_inside(tmp_path, "quick", cosine=0.9, gram=0.8, supcon=0.6)
    assert row(tmp_path, "L22").statement == row(tmp_path/"nothing", "L22").statement


def across_runs(data, seeds=3):
    "The runs of hakd's Table 1 on one data set, by what they stand for."
    preset = across.PRESETS["paper"]
    nets = {"transformer": preset.transformer, "cnn": preset.cnn, "student": preset.student}
    images = SimpleNamespace(**vars(IMAGES["cifar10"]) | {"name": data, "note": ""})
    p = across.Parameters(("pca_gl", "hint"), nets, (images,), "both", "all", preset="paper", seeds=seeds, changes={}, **COMMON)
    for seed in range(seeds):
        alone = {role: Run(net, "ce", (p.phase(net),), describe(images), seed, p.protocol, p.precision) for role, net in nets.items()}
        yield from ((role, "", run) for role, run in alone.items())
        for loss, teacher in (("pca_gl", "transformer"), ("hint", "cnn")):
            yield teacher, loss, distill(alone["student"], across.terms(loss, p)[0], alone[teacher])


@pytest.mark.parametrize("data, claim, verdict", [
    ("stl10 occluded", "H01", HOLDS), ("stl10 as is", "H01", NOT_RUN), ("stl10 occluded (test only)", "H01", NOT_RUN),
    ("fashion_mnist textured", "H04", CONTRADICTED)])
def test_runs_across_architectures_are_judged_on_their_own_data(tmp_path, data, claim, verdict):
    for role, loss, run in across_runs(data):
        finish(tmp_path/"hakd_table1", run, {"pca_gl": 50, "hint": 38}.get(loss, 70) + 0.1 * run.seed)
    assert row(tmp_path, claim).verdict == verdict


def test_paper_runs_go_before_fast_ones(tmp_path):
    gain(tmp_path/"cifar10_supcon", -1.0, "fast")
    gain(tmp_path/"cifar10_supcon", 1.2)
    now = row(tmp_path, "L06")
    assert now.verdict == HOLDS and now.also == f"fast: {CONTRADICTED}"


def test_of_several_weights_validation_chooses(tmp_path):
    gain(tmp_path/"cifar10_supcon", 1.2)
    for (source, *_), run in supcon_runs():
        heavier = tuple(replace(part, alpha=7.0) for part in run.parts)
        if source == "supcon": finish(tmp_path/"cifar10_supcon", replace(run, parts=heavier), 60.0)
    assert abs(row(tmp_path, "L06").difference - 1.208) < 1e-9


def pair_runs(table, pairs, specs, preset="paper", seeds=3):
    "The runs of a benchmark's table on CIFAR-100."
    p = benchmark.Parameters(benchmark.TABLES[table], pairs, benchmark.PROTOCOLS, specs, IMAGES["cifar100"], preset=preset, seeds=seeds,
                             changes={}, **COMMON)
    for seed in range(seeds):
        for pair in pairs:
            teacher = benchmark.alone(pair.teacher, "teachers", benchmark.common(pair.teacher), p, seed)
            yield pair, "teacher", teacher
            yield pair, "student", benchmark.alone(pair.student, "matched and as-published", benchmark.common(pair.student), p, seed)
            for spec in specs:
                for run in benchmark.students(spec, pair, teacher, p, seed): yield pair, spec, run


def test_all_pairs_must_be_run_and_both_protocols_are_judged(tmp_path):
    pairs = tuple(benchmark.Pair(*name.split("-")) for name in benchmark.TABLES["ckd_table1"].pairs)
    runs = list(pair_runs("ckd_table1", pairs, ("kd", "ckd")))
    for pair, spec, run in runs:
        bonus = {"ckd": 2.5 if "as-published" in run.protocol else 0.02}.get(spec, 0)
        if pair != pairs[0]: finish(tmp_path/"ckd_table1", run, 70 + 0.1 * run.seed * (spec == "ckd") + bonus)
    assert row(tmp_path, "C01").verdict == NOT_RUN
    for pair, spec, run in runs:
        if pair == pairs[0]: finish(tmp_path/"ckd_table1", run, 70 + 0.1 * run.seed + (spec == "ckd"))
    now = row(tmp_path, "C01")
    assert now.protocol == "matched, paper" and now.verdict == SEPARATE and now.n == 3
    assert now.also == f"as-published, paper: {HOLDS}"
    assert row(tmp_path, "C03").verdict == CONTRADICTED


def test_teachers_and_options_of_a_sweep_are_told_apart(tmp_path):
    pair = (benchmark.Pair("wrn_40_2", "shufflenet_v1"),)
    for _, spec, run in pair_runs("dcd_table1", pair, ("dcd+kd",)):
        finish(tmp_path/"dcd_table1", run, {"teacher": 75.6, "dcd+kd": 76.7}.get(spec, 70) + 0.01 * run.seed)
    for _, spec, run in pair_runs("dcd_table1", pair, ("dcd@weight=5+kd", "dcd@alpha=0.1+kd")):
        if "@" in spec: finish(tmp_path/"dcd_fig5", run, 10.0)
    now = row(tmp_path, "D06")
    assert now.verdict == HOLDS and abs(now.difference - 1.1) < 1e-9


def test_slips_are_recomputed():
    found = slips(ledger(ROOT/"reports"))
    assert len(found) == len(claims_table("slips")) and (found.recomputed != "").all()
    assert not found.recomputed.str.contains("nan|–").any()
    assert (found.recomputed == "of words, nothing to compute").sum() < 20
    assert (found.recomputed[found.recomputed == "proved"].index.map(lambda i: found.proof[i] != "")).all()


def test_the_committed_ledger_is_what_the_notebook_writes(tmp_path):
    for runs in (ROOT/"reports").glob("*/runs"): shutil.copytree(runs, tmp_path/"reports"/runs.parent.name/"runs")
    command = [sys.executable, "-m", "papermill", str(ROOT/"nbs/tables/claims.ipynb"), "out.ipynb", "--no-progress-bar", "-p", "reports", "reports"]
    (tmp_path/"reports").mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("claims.md", "claims.csv"): assert (tmp_path/"reports"/name).read_bytes() == (ROOT/"reports"/name).read_bytes()
    assert (tmp_path/"reports/fig_claims.png").stat().st_size > 5000
    done = subprocess.run([*command[:-2], "report", "x"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0 and "unknown parameter 'report'" in done.stderr + done.stdout


def test_numbers_of_the_ledger_are_finite():
    book = ledger(ROOT/"reports")
    assert np.isfinite(pd.to_numeric(book.difference[book.difference != ""])).all()


def test_the_measures_that_claims_ask_for_are_those_that_reports_have():
    known = {metric for metric, _ in difference_numbers((eye(3), eye(3)))} | {DEBIASED, "shared nearest 10"}
    metrics = {cell.what[0] for claim in claims_table("claims").itertuples() for side in (claim.left, claim.right) for part in side.split(" ; ")
               if part.startswith("run:") for cell in selected(part, claim.paper, []) if cell.what}
    assert len(metrics) == 3 and metrics <= known
