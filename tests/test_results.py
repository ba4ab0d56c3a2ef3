"""Tables of the results pages say what the commands wrote: each number is that of the JSON beside the page, rounded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"

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
    "*with labels:* SupCon": "supcon",
    "*with labels:* supervised, from scratch": "supervised",
    "*untrained encoder*": "random",
}
HEADS = ("k-NN", "linear, class token", "linear, mean token", "fine-tuned")
MAIN, GAIN = 0, 1  # of the tables in a JSON file


def tables_of(page: Path) -> list[dict[str, dict[str, str]]]:
    """The tables of a page: cells by row and column."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        head, rows = lines[0], lines[2:]
        tables.append({row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows})
    return tables


def numbers_in(cell: str) -> list[str]:
    """Numbers as they are written, signs joined to them."""
    return re.findall(r"[+-]?\d[\d,]*\.?\d*", re.sub(r"([+−]) (?=\d)", r"\1", cell).replace("−", "-"))


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
    rows = {name: cells for name, cells in shown.items() if name in ROWS}
    assert {ROWS[name] for name in rows} == {*results} - {"mass, multiplicity"}, "a row is missing or made up"
    for name, cells in rows.items():
        for head in HEADS:
            number = results[ROWS[name]][head]["macro AUC"]
            written = numbers_in(cells[head])
            assert len(written) in (2, 3)
            for text, value in zip(written, said_of(number, len(written)), strict=True):
                assert_rounded(text, value, f"{name}, {head}: {cells[head]}")
