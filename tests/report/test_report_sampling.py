"New test images: the error that they leave against formulas written otherwise and against resampling, and what a report says and keeps of it."
import json

import numpy as np
import pandas as pd
import pytest
from test_report_cells import SCORES, grid, layout

from kdnb.registry import InputError
from kdnb.report.cells import laid_out, needed
from kdnb.report.example import DIGITS, answered, keyed, plan_of, result_of, two_pairs
from kdnb.report.paired import interval
from kdnb.report.sampling import NORMAL, image_error, image_errors, joined, keep_labels, known_labels, right_answers, widened
from kdnb.report.text import difference_text, log_text, readable, reading
from kdnb.report.write import write_report
from kdnb.store import packed, predictions

RNG = np.random.default_rng(3)
MARK = DIGITS["fingerprint"]
LABELS = RNG.integers(10, size=DIGITS["test"])


def crossed(seeds, images, of_images=0.2, of_rest=0.4):
    "Differences with a part of the images' own."
    return np.round(RNG.normal(0.02, 0.01, (seeds, 1)) + RNG.normal(0, of_images, images) + RNG.normal(0, of_rest, (seeds, images))).clip(-1, 1)


@pytest.mark.parametrize("seeds, images", [(2, 300), (5, 2000)])
def test_the_error_of_images_is_the_component_of_an_analysis_of_variance(seeds, images):
    d = crossed(seeds, images, 0.6)
    total = 0.0   # mean squares of images and of the rest, one number after the other
    for i in range(images): total += (d[:, i].mean() - d.mean())**2
    between, rest = seeds * total / (images - 1), 0.0
    for s in range(seeds):
        for i in range(images): rest += (d[s, i] - d[s].mean() - d[:, i].mean() + d.mean())**2
    component = (between - rest / ((seeds - 1) * (images - 1))) / seeds
    assert image_error(d) == pytest.approx(100 * (component / images)**0.5)


def test_the_error_of_images_is_that_of_resampling_them():
    d = crossed(60, 1500, 0.5)   # so many seeds that their part of the spread of an image's mean is small
    means = [d[:, RNG.integers(1500, size=1500)].mean() for _ in range(2000)]
    assert image_error(d) == pytest.approx(100 * np.std(means), rel=0.06)


def test_images_that_differ_by_chance_alone_leave_no_error():
    found = [image_error(crossed(5, 400, 0.0)) for _ in range(40)]
    assert 0.2 < np.mean(np.equal(found, 0)) < 0.8 and image_error(np.zeros((4, 30))) == 0.0


def test_the_second_interval_covers_new_images_and_is_never_narrower():
    inside, first = 0, 0
    for _ in range(400):
        d = crossed(8, 300, 0.5)
        low, high = interval(100 * d.mean(1))
        half = widened((high - low) / 2, image_error(d))
        assert half >= (high - low) / 2
        inside, first = inside + (abs(100 * d.mean() - TRUTH) < half), first + (low < TRUTH < high)
    assert inside / 400 > 0.92 > 0.9 > first / 400


TRUTH = 100 * np.mean([crossed(1, 200_000, 0.5).mean() for _ in range(10)])


def test_answers_are_known_by_the_labels_that_give_the_score():
    predicted = np.where(RNG.random(200) < 0.7, LABELS[:200], (LABELS[:200] + 1) % 10)
    record, score = {"predictions": packed(predicted, 10)}, 100 * (predicted == LABELS[:200]).mean()
    assert (right_answers(record, LABELS, score) == (predicted == LABELS[:200])).all()
    for wrong in (right_answers(record, LABELS[1:], score), right_answers(record, LABELS[:199], score), right_answers(record, None, score), right_answers({}, LABELS, score),
                  right_answers({"predictions": None}, LABELS, np.nan), right_answers(record, LABELS, score + 0.3), right_answers(record, LABELS, np.nan)):
        assert wrong is None


def test_rows_are_compared_over_the_seeds_that_both_know():
    right = np.full((3, 3), None, object)
    answers = RNG.random((2, 3, 100)) < 0.8
    for i in range(2):
        for s in range(3): right[i, s] = answers[i, s]
    right[1, 2] = None
    found = image_errors(right, np.array([-1, 0, 0]))
    assert found[1] == pytest.approx(image_error(answers[1, :2].astype(int) - answers[0, :2])) and np.isnan(found[[0, 2]]).all()
    right[1, 1] = answers[1, 1, :50]   # another number of images is no pair
    assert image_errors(right, np.array([-1, 0, 0]))[1] == pytest.approx(image_error(answers[1, :1].astype(int) - answers[0, :1]))


def test_labels_are_kept_and_read_again_and_the_longer_ones_stay(tmp_path):
    keep_labels(tmp_path, {"a": LABELS, "b": LABELS[:20], "c": LABELS[:0]})
    found = known_labels([tmp_path, tmp_path/"none"])
    assert sorted(found) == ["a", "b"] and (found["a"] == LABELS).all()
    more = joined(found, {"a": LABELS[:3], "b": LABELS})
    assert len(more["a"]) == len(more["b"]) == len(LABELS) and len(found["b"]) == 20
    keep_labels(tmp_path/"empty", {})
    assert not (tmp_path/"empty").exists()


@pytest.mark.parametrize("text", ["", "[]", "{\"a\": 1}", "{\"a\": {}}", "{\"a\": {\"classes\": 3, \"images\": 2, \"zlib\": \"AAAA\"}}", "\x00"])
def test_damaged_labels_are_refused_in_one_sentence(tmp_path, text):
    (tmp_path/"labels.json").write_text(text)
    with pytest.raises(InputError) as caught: known_labels([tmp_path])
    assert "labels.json does not hold labels of test images. Delete it" in str(caught.value) and "\n" not in str(caught.value)


# in a report

def cells():
    "Cells whose scores are whole numbers of images, with predictions."
    made = grid({row: [round(v * 3) / 3 for v in values] for row, values in SCORES.items()})
    known = answered(keyed(made), LABELS)
    return [(known[record["key"]], *rest) for record, *rest in made]


def test_a_report_has_both_intervals_where_it_knows_the_labels(tmp_path):
    plans, results = [plan_of(cells())], keyed(cells())
    own = layout(labels={MARK: LABELS})
    runs, table = laid_out(plans, results, own)
    at = table.set_index("row")
    right = {(run.row, run.seed): predictions(results[run.key]) == LABELS for run in runs.itertuples() if run.role != "teacher"}
    d = np.array([right["gram", s].astype(int) - right["kd", s] for s in range(3)])
    assert at.loc["gram", "over kd"] == pytest.approx(100 * d.mean(), abs=0.2)
    half = widened(at.loc["gram", "over kd high"] - at.loc["gram", "over kd"], image_error(d))
    assert at.loc["gram", "over kd new high"] - at.loc["gram", "over kd"] == pytest.approx(half) and image_error(d) > 0
    texts = readable(table, own).set_index("row")["over kd"]
    assert texts["Gram KD"].count("[") == 2 and "new images" in reading(table, own) and log_text(plans, results, own).count("[") > 8
    without = laid_out(plans, results, layout())[1]
    assert without["over kd new low"].isna().all() and "new images" not in reading(without, layout()) and without["over kd low"].equals(table["over kd low"])


def test_labels_stay_beside_a_report_and_serve_the_next_one(tmp_path):
    plans, results = [plan_of(cells())], keyed(cells())
    first = write_report(tmp_path, plans, results, layout(labels={MARK: LABELS, "another": LABELS}), figures=False)
    assert [*json.loads((tmp_path/"labels.json").read_text())] == [MARK]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = write_report(tmp_path, plans, {key: needed(record) for key, record in results.items()}, layout(), figures=False)
    pd.testing.assert_frame_equal(first, again)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_labels_of_other_images_give_no_second_interval():
    plans, results = [plan_of(cells())], keyed(cells())
    for labels in ({MARK: (LABELS + 1) % 10}, {"other": LABELS}, {MARK: LABELS[:-1]}):
        assert laid_out(plans, results, layout(labels=labels))[1]["over kd new low"].isna().all()


def test_two_sets_of_images_keep_their_own_labels(tmp_path):
    plans, results = two_pairs()
    results = {key: result_of(record["config"], round(3 * record["scores"]["top1"]["last"]) / 3) for key, record in results.items()}
    other = [plan | {"data": DIGITS | {"fingerprint": "cd34"}} for plan in plans]
    table = laid_out([*plans, *other], answered(results, LABELS), layout(labels={MARK: LABELS}))[1]
    assert table[table.fingerprint == MARK]["over kd new low"].notna().sum() > 5 and table[table.fingerprint == "cd34"]["over kd new low"].isna().all()


def test_both_intervals_in_words():
    assert difference_text(1.5, 1.0, 2.0, 0.01, 2, (0.5, 2.5)) == "+1.50 [1.00, 2.00] [0.50, 2.50] (2) *" and NORMAL == pytest.approx(1.96, abs=1e-4)
    assert difference_text(1.5, -np.inf, np.inf, np.nan, None, (-np.inf, np.inf)) == "+1.50"
