"""The verb `embed`: embeddings and scores of every jet, as Parquet."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from jetrep.errors import InputError
from jetrep.report.files import check_writable
from jetrep.studies.predictions import write_predictions
from jetrep.training.checkpoint import load_model, weights_hash
from jetrep.training.data import data_hashes, load_jets

__all__ = ["embed"]


def embed(run: Path, *, on: Path, out: Path, max_jets: int | None = None, quiet: bool = False) -> Path:
    """Write the embedding of every jet of a store to Parquet, with the tagger's scores if the run has a classifier.

    Columns: ``index`` of the jet in the store, ``embedding`` (fixed-size list of float32), ``score_CLASS`` for a
    tagger, ``label`` and ``class`` if the jets are labelled, the observables ``pt``, ``eta``, ``phi``, ``mass`` (GeV)
    and ``n_constituents``, and every observer of the store as ``observer.NAME``. Rows are in the order of the store.

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
    model = load_model(run, "auto")
    jets = load_jets([on], max_jets=max_jets)
    embedding = model.embed(jets, quiet=quiet)
    probabilities = None if model.head is None else model.predict(jets, quiet=quiet)
    write_predictions(
        out,
        jets,
        classes=model.config.classes,
        probabilities=probabilities,
        embedding=embedding,
        provenance={"run": run, "weights": weights_hash(run), "data": data_hashes([on])},
    )
    if not quiet:
        Console(stderr=True).print(f"{len(jets)} jets, {embedding.shape[1]} dimensions: {out}")
    return out
