"A placebo: which cells are one loss, what they differ by, what has to be asked for, and what a report says of it."
import numpy as np
import pandas as pd
import pytest
import torch
from test_report_cells import PAIR, layout

from kdnb.experiments.experiment import Experiment
from kdnb.registry import losses
from kdnb.report.cells import SECTION, laid_out
from kdnb.report.example import DIGITS, answered, config_of, keyed, plan_of, result_of
from kdnb.report.paired import interval
from kdnb.report.placebo import floor_of, plainly
from kdnb.report.sampling import image_error, widened
from kdnb.report.text import escape, floor_text, log_text, placebo_texts, show, statements
from kdnb.report.write import write_report
from kdnb.store import predictions

TWINS = {"cosine": ("norm", 2.0)}
NORM, COSINE = [90.2, 90.4, 89.9, 90.0], [90.5, 90.1, 90.3, 90.6]


def cells(rows, **config):
    "Cells of rows, by (loss, weight): scores of seeds."
    found = []
    for (loss, weight), values in rows.items():
        for seed, last in enumerate(values):
            taught = config_of("resnet8", seed, loss, config_of("resnet14", seed, **config))
            taught["terms"][0]["weight"] = weight
            found.append((result_of(taught, last), "distilled", loss, *PAIR))
    return found


def summary_of(made, **other):
    plans = [plan_of(made, **other)]
    return laid_out(plans, keyed(made), layout(twins=TWINS))[1]


@pytest.mark.parametrize("on", ["logits", "embedding"])
def test_the_losses_that_experiments_call_one_are_one(on):
    for loss, (other, ratio) in Experiment.TWINS.items():
        s, t = torch.randn(2, 16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        s.requires_grad_()
        own, its = (torch.autograd.grad(losses.build(name, on=on).loss(s, t, None), s)[0] for name in (loss, other))
        torch.testing.assert_close(ratio * own, its, rtol=1e-12, atol=1e-14)
        assert own.abs().max() > 1e-3


def test_the_difference_of_a_loss_from_itself_is_that_of_two_rows():
    table = summary_of(cells({("norm", 0.3): NORM, ("cosine", 0.6): COSINE, ("kd", 1.0): [91.0, 91.2, 90.7, 90.9]})).set_index("row")
    found = np.subtract(NORM, COSINE)   # the cosine comes first: rows without a name stand by their names
    sign = 1 if np.isfinite(table.loc["norm", "placebo"]) else -1
    at = table.loc["norm" if sign == 1 else "cosine"]
    assert sign * at.placebo == pytest.approx(found.mean()) and at["placebo n"] == 4
    assert (at["placebo low"], at["placebo high"]) == pytest.approx(interval(sign * found))
    other = "cosine" if sign == 1 else "norm"
    assert at["placebo of"] == table.loc[other, "cell"] and table.placebo.notna().sum() == 1 and table.loc["kd", "placebo of"] == ""


@pytest.mark.parametrize("rows", [{("norm", 0.3): NORM, ("cosine", 0.3): COSINE}, {("norm", 0.3): NORM, ("norm", 0.6): COSINE}, {("kd", 0.3): NORM, ("cosine", 0.6): COSINE}])
def test_other_weights_or_losses_are_no_placebo(rows):
    assert summary_of(cells(rows)).placebo.isna().all()


def test_what_differs_in_anything_else_is_no_placebo():
    other = cells({("cosine", 0.6): COSINE}, objective="supcon")
    assert summary_of(cells({("norm", 0.3): NORM}) + other).placebo.isna().all()
    longer = cells({("cosine", 0.6): COSINE})
    for record, *_ in longer: record["config"]["phases"] = [record["config"]["phases"][0] | {"epochs": 9}]
    longer = [(result_of(record["config"], record["scores"]["top1"]["last"]), *rest) for record, *rest in longer]
    assert summary_of(cells({("norm", 0.3): NORM}) + longer).placebo.isna().all()
    plans = [plan_of(cells({("norm", 0.3): NORM})), plan_of(cells({("cosine", 0.6): COSINE}), preset="fast")]
    made = cells({("norm", 0.3): NORM, ("cosine", 0.6): COSINE})
    assert laid_out(plans, keyed(made), layout(twins=TWINS))[1].placebo.isna().all() and laid_out([plan_of(made)], keyed(made), layout())[1].placebo.isna().all()


def test_sums_that_share_a_loss_under_two_names_are_one():
    made = cells({("norm", 0.3): NORM, ("cosine", 0.6): COSINE})
    for record, *_ in made: record["config"]["terms"].append({"loss": "kd", "weight": 1.0, "options": {}, "warmup": 0})
    made = [(result_of(record["config"], record["scores"]["top1"]["last"]), *rest) for record, *rest in made]
    assert summary_of(made).placebo.notna().sum() == 1


def test_a_weight_that_only_rounding_tells_apart_is_the_same():
    one, other = ({"loss": loss, "weight": weight} for loss, weight in (("norm", 0.1 + 0.2), ("cosine", 0.6)))
    assert plainly([one], TWINS) == plainly([other], TWINS) and 0.1 + 0.2 != 0.3


# in a report

def test_a_section_says_its_placebo_and_a_report_its_floor(tmp_path):
    one, two = cells({("norm", 0.3): NORM, ("cosine", 0.6): COSINE}), cells({("norm", 0.3): [70.0, 71.0, 72.5, 70.1], ("cosine", 0.6): [70.1, 71.2, 71.2, 70.0]}, objective="supcon")
    plans, own = [plan_of(one + two)], layout(twins=TWINS)
    table = write_report(tmp_path, plans, keyed(one + two), own, figures=False)
    floor = floor_of(table)
    assert abs(floor.placebo) == table.placebo.abs().max() and table.placebo.notna().sum() == 2
    text, (said,) = (tmp_path/"table.md").read_text(encoding="utf-8"), placebo_texts(table, own)
    assert said.startswith("Placebo: ") and said.count("under another name") == 2 and escape(said) in text
    assert text.index("The floor of what a difference means") < text.index("Test accuracy in percent") and f"{floor.placebo:+.2f} [" in text.split("points**")[0]
    assert floor_text(table) in show(plans, keyed(one + two), own) and "Placebo: " in log_text(plans, keyed(one + two), own)


def test_a_whole_table_without_a_placebo_says_so_and_two_rows_do_not():
    whole = summary_of(cells({("kd", 1.0): NORM, ("gram", 1.0): COSINE, ("at", 1.0): [88.0, 88.5, 88.1, 88.3]}))
    assert "No placebo: no loss stands here twice." in statements(whole, layout(twins=TWINS)) and floor_text(whole) == "" and floor_of(whole) is None
    assert placebo_texts(summary_of(cells({("kd", 1.0): NORM, ("gram", 1.0): COSINE})), layout(twins=TWINS)) == []


def test_runs_that_are_the_same_to_the_last_digit_are_no_floor():
    same = cells({("norm", 0.3): NORM, ("cosine", 0.6): NORM})
    table = summary_of(same)
    assert floor_of(table) is None and floor_text(table) == "" and "differs in no seed yet" in placebo_texts(table, layout(twins=TWINS))[0]
    turned = summary_of(cells({("norm", 0.3): [90.0, 91.0], ("cosine", 0.6): [91.0, 90.0]}))   # no difference on average, one in each seed
    assert floor_of(turned).placebo == 0 and floor_of(turned)["placebo largest"] == 1 and "by +0.00 [" in placebo_texts(turned, layout(twins=TWINS))[0]


def test_a_placebo_has_both_intervals():
    labels = np.arange(DIGITS["test"]) % 10
    made = cells({("norm", 0.3): [270 / 3, 271 / 3, 269 / 3], ("cosine", 0.6): [271 / 3, 270 / 3, 272 / 3]})
    results = answered(keyed(made), labels)
    table = laid_out([plan_of(made)], results, layout(twins=TWINS, labels={DIGITS["fingerprint"]: labels}))[1]
    at = floor_of(table)
    right = {(run["config"]["terms"][0]["loss"], run["config"]["seed"]): predictions(run) == labels for run in results.values()}
    own, other = (at.row, "norm" if at.row == "cosine" else "cosine")
    d = np.array([right[own, s].astype(int) - right[other, s] for s in range(3)])
    assert at["placebo new high"] - at.placebo == pytest.approx(widened(at["placebo high"] - at.placebo, image_error(d))) and image_error(d) > 0


def test_a_pair_that_shares_no_seed_is_no_placebo():
    made = [cell for cell in cells({("norm", 0.3): NORM, ("cosine", 0.6): COSINE}) if (cell[0]["config"]["seed"] < 2) == (cell[2] == "norm")]
    table = summary_of(made)
    assert table.placebo.isna().all() and (table["placebo of"] == "").all() and len(table[SECTION].drop_duplicates()) == 1
    assert isinstance(table, pd.DataFrame)
