"""The results table says the same in the terminal, in Markdown and in JSON."""

import io
import json
import math

import pytest
from rich.console import Console

from jetrep.errors import InputError
from jetrep.report.measurement import Measurement
from jetrep.report.tables import METRIC_NAMES, ResultsTable

LIMIT = Measurement(1712.0, math.nan, 1712.0, math.inf, 0, limit=True)


@pytest.fixture
def table():
    def measured(value, error):
        return Measurement(value, error, value - error, value + error, 40, n_seeds=3, seed_error=error / 2)

    return ResultsTable.collect(
        "Top tagging",
        {
            "Supervised": {
                "simulation": {"auc": measured(0.9843, 0.0021), "rejection_50": LIMIT},
                "collisions": {"auc": measured(0.91, 0.042), "rejection_50": measured(31.4, 4.8)},
            },
            "RINO [linear] | LP": {"collisions": {"auc": measured(0.95, 0.0096), "rejection_50": measured(112, 12)}},
        },
        notes=["dropped 2 jets without constituents"],
        provenance={"config": "abc"},
    )


def printed(renderable, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_columns_of_no_domain_have_their_metric_alone():
    one = Measurement(1.0, 0.1, 0.9, 1.1)
    head = ResultsTable.collect("t", {"a": {"": {"seconds": one}}}).to_markdown().splitlines()[2]
    assert head == "| Method | seconds |"


def test_markdown_has_a_row_per_method_and_a_column_per_domain_and_metric(table):
    rows = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.replace("\\|", "¦").strip("|").split("|")] for row in rows]
    assert [len(row) for row in cells] == [5] * 4
    assert cells[0] == [
        "Method",
        "simulation: ROC AUC",
        f"simulation: {METRIC_NAMES['rejection_50']}",
        "collisions: ROC AUC",
        f"collisions: {METRIC_NAMES['rejection_50']}",
    ]
    assert cells[2] == ["Supervised", "0.9843 ± 0.0021", "> 1700", "0.91 ± 0.04", "31 ± 5"]
    assert cells[3] == ["RINO [linear] ¦ LP", "–", "–", "0.950 ± 0.010", "112 ± 12"]
    assert "3 seeds" in table.to_markdown()
    assert "95 %" in table.to_markdown()
    assert "dropped 2 jets" in table.to_markdown()


@pytest.mark.parametrize("width", [200, 70])
def test_the_terminal_shows_every_cell_whole_at_any_width(table, width):
    text = printed(table, width)
    assert max(map(len, text.splitlines())) <= width
    for cell in ("Supervised", "RINO [linear] | LP", "0.9843 ± 0.0021", "> 1700", "112 ± 12", "simulation"):
        assert cell in text
    # Side by side, what was not measured is a dash; one domain below the other, it needs no row.
    assert ("–" in text) == (width == 200)
    # Narrow: the domains stand below each other, and each method once in each.
    assert sum("Supervised" in line for line in text.splitlines()) == (1 if width == 200 else 2)


def test_errors_from_seeds_alone(table):
    assert table.cell("Supervised", "collisions", "rejection_50", "seeds") == "31.4 ± 2.4"
    assert "training seeds" in table.to_markdown("seeds")


def test_json_round_trip_through_a_file(table, tmp_path):
    file = table.save(tmp_path / "new" / "results.json")
    again = ResultsTable.load(file)
    assert again.cells["Supervised", "simulation", "auc"] == table.cells["Supervised", "simulation", "auc"]
    assert again.to_json() == table.to_json()
    assert again.to_markdown() == table.to_markdown()
    record = json.loads(file.read_text())
    assert record["results"]["Supervised"]["simulation"]["rejection_50"]["high"] is None
    assert record["results"]["Supervised"]["simulation"]["auc"]["value"] == 0.9843
    assert record["provenance"] == {"config": "abc"}
    assert [f.name for f in file.parent.iterdir()] == ["results.json"]
    assert table.save(tmp_path / "results.md").read_text() == table.to_markdown()


def test_metrics_can_be_selected_and_ordered(table):
    results = {m: {d: {} for d in table.domains} for m in table.methods}
    for (method, domain, metric), measurement in table.cells.items():
        results[method][domain][metric] = measurement
    assert ResultsTable.collect("", results, metrics=["rejection_50"]).metrics == ("rejection_50",)
    assert ResultsTable.collect("", results, metrics=["rejection_50", "auc"]).metrics == ("rejection_50", "auc")


def test_bad_input_is_named(table, tmp_path):
    with pytest.raises(InputError, match="methods"):
        ResultsTable("", ("a",), ("d",), ("auc",), {("b", "d", "auc"): LIMIT})
    with pytest.raises(InputError, match="csv"):
        table.save(tmp_path / "results.csv")
    (tmp_path / "cut.json").write_text('{"title": "x", "meth')
    with pytest.raises(InputError, match=r"cut\.json"):
        ResultsTable.load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match=r"list\.json"):
        ResultsTable.load(tmp_path / "list.json")
    with pytest.raises(InputError, match="methods"):
        ResultsTable.from_json({"title": "x"})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="written"):
        table.save(tmp_path / "file" / "results.json")
