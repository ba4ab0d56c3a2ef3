"""Files of predictions: what a model says of each jet, beside what else is known of it, as Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jetrep.jets import Jets
from jetrep.physics import fourvector as fv
from jetrep.report.files import replacing

__all__ = ["OBSERVER", "write_predictions"]

OBSERVER = "observer."
"""What the names of observers begin with in a file of predictions, as in a store."""


def write_predictions(
    file: Path,
    jets: Jets,
    *,
    classes: tuple[str, ...] = (),
    probabilities: NDArray[np.float32] | None = None,
    embedding: NDArray[np.float32] | None = None,
    provenance: Mapping[str, Any],
) -> None:
    """Write one row for each jet, in the order of the jets.

    ==================  ============================================================================
    ``index``           position of the jet in the store, from 0
    ``embedding``       fixed-size list of float32, if given
    ``score_CLASS``     probability of each class, if given
    ``label, class``    number and name of the true class, if the jets are labelled
    ``pt eta phi mass`` of the sum of the constituents, GeV
    ``n_constituents``  their number
    ``observer.NAME``   every observer of the store
    ==================  ============================================================================

    The metadata of the file has ``provenance`` as JSON under the key ``jetrep``.

    Args:
        file: the Parquet file.
        jets: the first jets of a store, all of them or fewer.
        classes: names of the columns of ``probabilities``.
        probabilities: (n_jets, n_classes).
        embedding: (n_jets, width).
        provenance: which model and which jets these are.

    Raises:
        InputError: if the disk refuses.
    """
    columns: dict[str, Any] = {"index": pa.array(np.arange(len(jets)))}
    if embedding is not None:
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
    if probabilities is not None:
        columns |= {f"score_{name}": pa.array(probabilities[:, i]) for i, name in enumerate(classes)}
    if jets.labels is not None:
        columns["label"] = pa.array(jets.labels)
        columns["class"] = pa.array(np.asarray(jets.classes, dtype=object)[jets.labels])
    p4 = jets.jet_p4
    for name, function in (("pt", fv.pt), ("eta", fv.eta), ("phi", fv.phi), ("mass", fv.mass)):
        columns[name] = pa.array(function(p4).astype(np.float32))
    columns["n_constituents"] = pa.array(jets.counts)
    columns |= {OBSERVER + name: pa.array(np.asarray(values)) for name, values in jets.observers.items()}
    table = pa.table(columns).replace_schema_metadata({"jetrep": json.dumps(dict(provenance), default=str)})
    with replacing(file) as stream:
        pq.write_table(table, stream)
