"""Your own jets through a trained run: .npz → store → embeddings → pandas.

    python examples/own_jets.py jets.npz --run runs/rino --out mine

The .npz holds p4 (N, 4) = E, px, py, pz in GeV, all jets one after the other; n (jets,), constituents of each;
optionally y (jets,), labels. It prints the jets that the representation takes for the most similar to the first ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from jetrep.store.prepare import prepare
from jetrep.studies.embed import embed

COLUMNS = ["pt", "mass", "n_constituents"]


def embedded(file: Path, run: Path, out: Path) -> pd.DataFrame:
    """One row a jet: embedding, observables, and scores if the run is a tagger."""
    store = prepare("arrays", [file], out=out / "store", overwrite=True, quiet=True)
    return pd.read_parquet(embed(run, on=store.path, out=out / "embeddings.parquet", quiet=True))


def nearest(table: pd.DataFrame, jet: int, n: int) -> pd.DataFrame:
    """The ``n`` jets most similar to ``jet``, by the cosine of standardised embeddings."""
    x = np.stack(table["embedding"].to_list())
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    cosine = x @ x[jet]
    order = np.argsort(-cosine, kind="stable")[: n + 1]
    return table.iloc[order][COLUMNS].assign(cosine=cosine[order])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="your jets, .npz")
    parser.add_argument("--run", type=Path, required=True, help="folder of a pretrained or fine-tuned run")
    parser.add_argument("--out", type=Path, default=Path("mine"), help="folder for store and embeddings")
    parser.add_argument("--show", type=int, default=3, help="for how many jets to list the nearest ones")
    args = parser.parse_args()
    table = embedded(args.file, args.run, args.out)
    print(f"{len(table)} jets, embeddings of {len(table['embedding'].iloc[0])} dimensions")
    for jet in range(min(args.show, len(table))):
        print(f"\njet {jet} and those nearest to it:")
        print(nearest(table, jet, 5).to_string(float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
