"""The recipes of the controlled comparison, on jets of the classes that their data sets have."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest

from jetrep import cli
from jetrep.sources.jetclass import CLASSES
from jetrep.sources.jetclass2 import CLASSES_7
from jetrep.studies.compare import EFFICIENCIES, compare
from prong_jets import prong_jets, write_store

SIMULATED = ("g", "q", "top", "w", "z")
RECIPES = {
    "compare-quick": (SIMULATED, "g", {}),
    "compare-toptagging": (("qcd", "top"), "qcd", {"top": 0.3}),
    "compare-toptagging-mini": (("qcd", "top"), "qcd", {"top": 0.3}),
    "compare-jetclass10": (CLASSES, "QCD", EFFICIENCIES),
    "compare-jetclass2-7": (CLASSES_7, "QCD", {}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_compare_all_objectives_at_the_working_points_of_their_data(recipe, tmp_path):
    classes, background, efficiencies = RECIPES[recipe]
    n = 12 * len(classes)
    train, test = (
        write_store(tmp_path / name, replace(prong_jets(n, seed), labels=np.arange(n) % len(classes), classes=classes))
        for seed, name in enumerate(("train", "test"))
    )
    words = cli._resolve(shlex.split(f"--config {recipe} --train {train} --test {test} --out {tmp_path / 'out'}"))
    parser = cli._parser("compare", compare, tuple(words))
    settings = vars(parser.instantiate(parser.parse_args(words)))
    del settings["config"]
    settings["finetuning"] = replace(settings["finetuning"], epochs=1)
    settings |= {"n_labels": [], "batch_size": 20, "n_bootstrap": 2, "quiet": True}
    cells = compare(**settings | {"list_cells": True})["cells"]
    rows = [cell["row"] for cell in cells if cell["seed"] == 0]
    # Nine objectives and three baselines, some objectives perhaps with other settings beside the usual ones.
    assert len([row for row in rows if not row.startswith(("masked_particles ", "jetclr "))]) == 12
    assert rows.count("masked_particles") == rows.count("jetclr") == 1
    assert len(cells) == len(rows) * settings["seeds"]
    chosen = rows.index("random")
    compare(**settings | {"cell": chosen})
    results = json.loads((tmp_path / "out/cells/random-seed-0/cell.json").read_text())["results"]
    assert {r["signal"] for r in results if r["metric"] == "rejection"} == {*classes} - {background}
    at = json.loads((tmp_path / "out/cells/random-seed-0/settings.json").read_text())["efficiencies"]
    assert at == {name: efficiencies.get(name, 0.5) for name in classes if name != background}
