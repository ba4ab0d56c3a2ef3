"""The verb `embed`: embeddings and scores of every jet, as Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from jetrep.errors import InputError
from jetrep.physics import fourvector as fv
from jetrep.report.files import check_writable, replacing
from jetrep.training.checkpoint import load_model
from jetrep.training.data import load_jets

__all__ = ["embed"]


def embed(run: Path, *, on: Path, out: Path, max_jets: int | None = None, quiet: bool = False) -> Path:
    """Write the embedding of every jet of a store to Parquet, with the tagger's scores if the run has a classifier.

    Columns: ``embedding`` (fixed-size list of float32), ``score_CLASS`` for a tagger, ``label`` and ``class`` if the
    jets are labelled, and the observables ``pt``, ``eta``, ``phi``, ``mass`` (GeV) and ``n_constituents``. Rows are in
    the order of the store.

    Args:
        run: folder of a pretrained or fine-tuned run.
        on: store with the jets.
        out: Parquet file to write.
        max_jets: use at most this many jets, the first; all by default.
        quiet: show no progress.

    Returns:
        The file.
    """
    if out.is_dir():
        raise InputError("is a folder", file=out, field="out", remedy="give the name of a Parquet file")
    check_writable(out.parent)
    model = load_model(run)
    jets = load_jets([on], max_jets=max_jets)
    embedding = model.embed(jets, quiet=quiet)
    p4 = jets.jet_p4
    columns: dict[str, pa.Array] = {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
    }
    if model.head is not None:
        probabilities = model.predict(jets, quiet=quiet)
        for i, name in enumerate(model.config.classes):
            columns[f"score_{name}"] = pa.array(probabilities[:, i])
    if jets.labels is not None:
        columns["label"] = pa.array(jets.labels)
        columns["class"] = pa.array(np.asarray(jets.classes, dtype=object)[jets.labels])
    for name, function in (("pt", fv.pt), ("eta", fv.eta), ("phi", fv.phi), ("mass", fv.mass)):
        columns[name] = pa.array(function(p4).astype(np.float32))
    columns["n_constituents"] = pa.array(jets.counts)
    with replacing(out) as stream:
        pq.write_table(pa.table(columns), stream)
    if not quiet:
        Console(stderr=True).print(f"{len(jets)} jets, {embedding.shape[1]} dimensions: {out}")
    return out
