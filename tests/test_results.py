"""Tables of the results pages say what the commands wrote: each number is that of the JSON beside the page, rounded."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"

# Rows of the comparisons of objectives, as the page calls them.
ROWS = {
    "RINO": "self_distillation",
    "RINO, momentum 0.99": "self_distillation",
    "JetCLR": "jetclr",
    "JetCLR with its published shifts": "jetclr",
    "… with its published shifts": "jetclr shifted",
    "JetCLR between scales": "jetclr_scale",
    "masked particles": "masked_particles",
    "masked particles, k-means": "masked_particles",
    "masked particles, decoder: k-means": "masked_particles",
    "… VQ-VAE": "masked_particles vq",
    "… regression": "masked_particles regression",
    "… normalising flow": "masked_particles flow",
    "… flow matching": "masked_particles flow matching",
    "masked particles, in place: k-means": "masked_particles in place",
    "… VQ-VAE, as in the first version": "masked_particles v1",
    "JEPA": "jepa",
    "JEPA, momentum 0.992": "jepa",
    "CLIP-VAE": "clip_vae",
    "CLIP-VAE (our definition)": "clip_vae",
    "next token": "next_token",
    "autoencoder": "autoencoder",
    "with labels: SupCon": "supcon",
    "with labels: supervised, from scratch": "supervised",
    "untrained encoder": "random",
}
HEADS = ("k-NN", "linear, class token", "linear, mean token", "fine-tuned")
MAIN, GAIN = 0, 1  # of the tables in a JSON file


def tables_of(page: Path) -> list[list[tuple[str, dict[str, str]]]]:
    """The tables of a page: the name of each row, without emphasis, and its cells by column."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        head, rows = lines[0], lines[2:]
        tables.append([(row[0].replace("*", ""), dict(zip(head[1:], row[1:], strict=True))) for row in rows])
    return tables


def numbers_in(cell: str) -> list[str]:
    """Numbers as they are written, signs joined to them."""
    return re.findall(r"[+-]?\d[\d,]*\.?\d*", re.sub(r"([+−]) (?=\d)", r"\1", cell).replace("−", "-"))


def box_of(page: Path) -> list[tuple[str, str, list[str]]]:
    """The table that a study printed: domain and row of each line, and its cells."""
    found, domain = [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("│"):
            name, *cells = line.strip("│").split("│")
            if name.startswith("   "):
                found.append((domain, name.strip(), [cell.strip() for cell in cells]))
            else:
                domain = name.strip()
    return found


def assert_rounded(text: str, value: float, where: str) -> None:
    """That ``text`` is ``value``, to half a unit of the last digit written (zeros that end an integer are none)."""
    digits = text.replace(",", "")
    decimals = len(digits.partition(".")[2])
    unit = 10.0**-decimals if decimals else 10.0 ** (len(digits) - len(digits.rstrip("0")))
    assert float(digits) == pytest.approx(value, abs=0.5000001 * unit), where


def said_of(number: dict[str, Any], parts: int) -> list[float]:
    """Value and total error, or value, error of the seeds and error of the jets."""
    return [number[key] for key in (("value", "error") if parts == 2 else ("value", "seed_error", "sampling_error"))]


@pytest.mark.parametrize(
    ("position", "file", "table"),
    [
        pytest.param(0, "objectives-simulated.json", MAIN, id="simulated"),
        pytest.param(1, "objectives-simulated.json", GAIN, id="gain, simulated"),
        pytest.param(2, "objectives-toptagging.json", MAIN, id="top tagging"),
        pytest.param(3, "objectives-longer.json", GAIN, id="gain, three times as long"),
    ],
)
def test_tables_of_objectives_are_those_of_the_command(position, file, table):
    shown = tables_of(RESULTS / "objectives.md")[position]
    results = json.loads((RESULTS / file).read_text(encoding="utf-8"))[table]["results"]
    rows = [(name, cells) for name, cells in shown if name in ROWS]
    assert {ROWS[name] for name, _ in rows} == {*results} - {"mass, multiplicity"}, "a row is missing or made up"
    for name, cells in rows:
        for head in HEADS:
            number = results[ROWS[name]][head]["macro AUC"]
            written = numbers_in(cells[head])
            assert len(written) in (2, 3)
            for text, value in zip(written, said_of(number, len(written)), strict=True):
                assert_rounded(text, value, f"{name}, {head}: {cells[head]}")


COLUMNS = {"accuracy": "accuracy", "AUC": "macro AUC", "1/ε_B (ε_S = 0.3)": "1/ε_B"}


def read_upgrade(file: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Of a comparison of ParT and the upgrade: fine-tuned taggers and their differences, by row and column."""
    by_title = {table["title"]: table["results"] for table in json.loads((RESULTS / file).read_text(encoding="utf-8"))}
    difference = "Difference to ParT, seed by seed"
    pairs = {
        "": ("ParT and what we change of it: top tagging at a reduced size", "fine-tuned: each class against qcd"),
        " − ParT": (difference, f"{difference}, fine-tuned"),
    }
    return {
        row + suffix: {**cells["fine-tuned"], **by_title[by_class][row]["top"]}
        for suffix, (overall, by_class) in pairs.items()
        for row, cells in by_title[overall].items()
    }


def pooled(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean difference over the seeds of several runs, its standard error, and the error of the jets of the first."""
    n, means = np.array([run["n_seeds"] for run in runs]), np.array([run["value"] for run in runs])
    mean = (n * means).sum() / n.sum()
    squares = (n * (n - 1) * np.array([run["seed_error"] for run in runs]) ** 2 + n * (means - mean) ** 2).sum()
    error = (squares / (n.sum() - 1) / n.sum()) ** 0.5
    return {"value": mean, "seed_error": error, "sampling_error": runs[0]["sampling_error"]}


def test_tables_of_the_upgrade_are_those_of_the_command():
    first, again, third = runs = [read_upgrade(f"upgrade{suffix}.json") for suffix in ("", "-again", "-third")]
    more = {"again": read_upgrade("upgrade-again-more.json"), "third": read_upgrade("upgrade-third-more.json")}
    table, differences = tables_of(RESULTS / "upgrade.md")[:2]
    for name, cells in table:
        run = again if name.startswith("seeds 10 to 14") else third if name.startswith("seeds 15 to 19") else first
        row = "ParT" if "ParT" in name else "upgrade without dropout" if "without" in name else "upgrade"
        for column, key in COLUMNS.items():
            value, spread = numbers_in(cells[column])
            assert_rounded(value, run[row][key]["value"], f"{name}, {column}")
            assert_rounded(spread, run[row][key]["seed_error"], f"{name}, {column}")
    everything = {key: pooled([run["upgrade − ParT"][key] for run in runs]) for key in COLUMNS.values()}
    known = [  # in the order of the table; what has no JSON is left out
        ("upgrade, eighteen seeds", everything),
        ("the first eight", first["upgrade − ParT"]),
        ("seeds 10 to 14", again["upgrade − ParT"]),
        ("seeds 15 to 19", third["upgrade − ParT"]),
        ("upgrade without dropout, five seeds", first["upgrade without dropout − ParT"]),
        ("seeds 10 to 14", more["again"]["upgrade − ParT"]),
        ("seeds 15 to 19", more["third"]["upgrade − ParT"]),
    ]
    rows = iter(differences)
    for name, results in known:
        cells = next(cells for row, cells in rows if row == name)
        for column, key in COLUMNS.items():
            *written, sigma = numbers_in(cells[column])
            for text, value in zip(written, said_of(results[key], 3), strict=True):
                assert_rounded(text, value, f"{name}, {column}")
            assert_rounded(sigma, results[key]["value"] / results[key]["seed_error"], f"{name}, {column}: σ")


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("README.md", "demo/results.json"),
        ("docs/results/demo.md", "demo/results.json"),
        ("docs/results/toptagging.md", "docs/results/toptagging.json"),
    ],
)
def test_printed_tables_are_those_of_the_study(page, file):
    results = json.loads((ROOT / file).read_text(encoding="utf-8"))["results"]
    lines = box_of(ROOT / page)
    assert {(row, domain) for domain, row, _ in lines} == {(row, domain) for row in results for domain in results[row]}
    for domain, row, cells in lines:
        for cell, metric in zip(cells, ("accuracy", "auc", "rejection_30", "rejection_50"), strict=True):
            for text, value in zip(numbers_in(cell), said_of(results[row][domain][metric], 2), strict=True):
                assert_rounded(text, value, f"{row}, {domain}, {metric}: {cell}")
