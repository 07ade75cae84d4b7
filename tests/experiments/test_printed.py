"A list of choices names a paper as its source for what that paper prints, and for nothing else: papers/printed.csv holds what is printed, and where."
import ast
import re
from dataclasses import replace
from fnmatch import fnmatch

import pytest

from kdnb.data.images import load_images
from kdnb.experiments.experiment import ROOT, Table, statements, stated
from notebooks import TABLES, cells, experiment_of

NAMES = sorted(path.stem for path in TABLES.glob("*.ipynb") if not path.stem.startswith("_") and path.stem not in ("claims", "weights"))
PAPERS = ("lee2025", "ckd", "dcd", "hakd", "supcrd")
EVERY = [row for paper in PAPERS for row in statements(paper)]
TAG = re.compile(r"paper(?: \((\w+)\))?, ([^:;]+)(:.*)?")
OURS = ("ours", "convention", "official code", "not stated", "Liu et al.")  # a source that begins so may speak of a paper's silence
DIGITS = load_images("digits")


def wrong(table: Table, choice: str, value: str, source: str) -> list[str]:
    "What a choice says of a paper that the paper does not print."
    found = []
    for part in source.split("; "):
        if "paper" not in part or part.startswith(OURS): continue
        tag = TAG.fullmatch(part)
        rows = [row for row in EVERY if tag and row["paper"] == (tag[1] or table.paper) and row["table"] in ("", table.name)
                and fnmatch(choice, row["parameter"]) and row["place"] == tag[2]]
        if not any(row["value"] and row["value"] in value for row in rows): found.append(f"{table.name}: {choice} | {value} | {part}")
    return found


def seen(p, name: str):
    "The list of choices on a data set that is called as the paper's; no training image of it is looked at."
    return p.choices(replace(DIGITS, name=name, note=""))


DATA = {"lee2025": ["cifar10"], "ckd": ["cifar100"], "dcd": ["cifar100"], "supcrd": ["cifar10"],
        "hakd": ["cifar10 as is", "stl10 occluded", "stl10 occluded (test only)", "fashion_mnist textured", "stl10 as is"]}
ASKED = [{}, {"preset": "fast"}, {"preset": "paper"}, {"preset": "paper", "seeds": 2, "epochs": 3, "batch": 7, "weight": 0.5, "optimiser": "adamw"}, {"preset": "paper", "seeds": 1}]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_to_be_the_papers_is_printed_there(name):
    kind, table = experiment_of(name)
    for asked in ASKED:
        p = kind(table=table, data="digits", device="cpu", **asked)
        lists = [seen(p, data) for data in [*DATA[table.paper], "digits", "part of cifar10"]]
        if name == "dcd_table2":
            from kdnb.analysis.transfer import target_choices
            lists += [target_choices(p), target_choices(replace(p, moving=True))]
        found = [said for choices in lists for choice in choices for said in wrong(table, *choice)]
        assert not found, "\n".join(found)


def tagged(tree):
    "The choices that a program writes down with a paper as their source, as texts."
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and len(node.elts) == 3 and isinstance(node.elts[2], ast.Constant) and isinstance(node.elts[0], ast.Constant):
            yield node.elts[0].value, ast.unparse(node.elts[1]), node.elts[2].value


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_adds_is_printed_too(name):
    table = experiment_of(name)[1]
    found = [said for cell in cells(name) if cell.cell_type == "code" for choice in tagged(ast.parse(cell.source)) if isinstance(choice[2], str)
             for said in wrong(table, *choice)]
    assert not found, "\n".join(found)


def test_a_wrong_tag_is_found():
    "What was wrong once: epochs that nobody prints, a place where something else stands, and data of another paper."
    table = Table("ckd_fig10", "ckd", (), "", {})
    for choice in (("length", "240 epochs", "paper, IV-A3"), ("weights", "ckd 10", "paper (ckd), IV-A3"), ("data", "cifar100", "paper, Fig. 10"),
                   ("weights", "ckd 100", "paper (ckd), IV-A4"), ("weights", "ckd 100", "paper"), ("weights", "ckd 100", "the rest: paper"), ("seeds", "5 seeds", "paper: repeated")):
        assert wrong(table, *choice), choice
    for choice in (("weights", "ckd 100", "paper (ckd), IV-A3; official code"), ("data", "imagenet", "paper, Fig. 10"), ("takd", "x", "ours: the papers do not say")):
        assert not wrong(table, *choice), choice


@pytest.mark.parametrize("name,data,said", [
    ("ckd_table1", "cifar100", "paper, IV-A1"), ("ckd_fig10", "cifar100", "ours"), ("supcrd", "cifar10", "ours"), ("lee2025_table5", "cifar10", "ours"),
    ("lee2025_fig2", "cifar10", "ours"), ("cifar10_supcon", "cifar10", "paper, IV-A"), ("ckd_table1", "cifar10", "ours"), ("hakd_table1", "stl10 occluded", "paper, 5.1"),
    ("hakd_table1", "stl10 as is", "ours"), ("hakd_fig3", "stl10 occluded", "ours"), ("dcd_table2", "cifar100", "paper, 4.2")])
def test_data_are_the_papers_where_it_says_so_of_this_table(name, data, said):
    kind, table = experiment_of(name)
    p = kind(table=table, data="digits", device="cpu")
    assert dict((what, source) for what, _, source in seen(p, data))["data"] == said
    held = replace(DIGITS, name=data, note="").split(200)
    source = dict((what, source) for what, _, source in p.choices(held))["data"]
    assert source == (said if said == "ours" else f"{said}; that some are held out: ours")
    assert dict((what, source) for what, _, source in p.choices(replace(DIGITS, name=data)))["data"] == "ours", "data with a note are not the paper's"


def test_networks_and_seeds_are_the_papers_where_it_says_so():
    def sources(name, **asked):
        kind, table = experiment_of(name)
        return {what: source for what, _, source in seen(kind(table=table, data="digits", device="cpu", **asked), "x")}
    full = {"preset": "paper"}
    assert sources("cifar10_supcon", **full)["networks"] == "paper, IV-B" and sources("lee2025_table5", **full)["networks"] == sources("cifar10_supcon")["networks"] == "ours"
    assert [sources("cifar10_supcon", seeds=n)["seeds"].split(";")[0] for n in (5, 3)] == ["paper, IV-B", "ours"]
    assert [sources(name, seeds=n)["seeds"].split(";")[0] for name, n in (("ckd_table1", 5), ("ckd_table6", 5), ("dcd_fig4", 1), ("dcd_fig4", 5), ("dcd_fig5", 5), ("dcd_fig2", 5))] == [
        "paper, Table I", "ours", "paper, Figure 4", "ours", "paper, Figure 5", "ours"]
    hakd = sources("hakd_table1", **full)
    assert "CLIP's transformer" in hakd["networks"] and sources("hakd_table1", transformer="vit_b_16@weights=IMAGENET1K_V1", **full)["networks"] == "ours"
    assert hakd["training of vit_clip@weights=openai"] == "paper, 7; convention" and "paper" not in sources("hakd_table1", epochs=200, **full)["training of vit_clip@weights=openai"]


def test_no_paper_prints_a_length_but_one():
    printed = {(row["paper"], row["value"]) for row in EVERY if "epochs" in row["value"]}
    assert printed == {("hakd", "10 epochs")}
    assert {row["paper"] for row in EVERY if row["parameter"] == "length" and not row["value"]} == {"ckd", "dcd"}


def test_the_file_is_whole():
    text = (ROOT/"papers/printed.csv").read_text(encoding="utf-8")
    assert len(EVERY) == len(text.strip().splitlines()) - 1 and '""' not in text, "every row belongs to a paper, and nothing is quoted"
    for row in EVERY:
        assert set(row) == {"paper", "table", "parameter", "value", "place", "description"} and row["parameter"] and row["description"]
        assert row["place"] or not row["value"], f"{row}: what is printed has a place"
        assert row["table"] in ("", *NAMES)
    first = experiment_of("cifar10_supcon")[1]
    assert stated(first, "data", "cifar10") == "paper, IV-A" and not stated(first, "data", "") and not stated(first, "weight", "") and not stated(first, "colour", "red")
