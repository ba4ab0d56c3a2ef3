"""Models at rest: ``model.safetensors`` (weights) and ``model.json`` (configuration, provenance).

Loading never runs code that came with a model: tensors are read by safetensors, settings by a closed vocabulary.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xxhash
from jsonargparse import ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jetrep import __version__
from jetrep.errors import InputError
from jetrep.model import JetModel, ModelConfig

__all__ = ["SCHEMA_VERSION", "load_model", "model_record", "save_model", "weights_hash"]

SCHEMA_VERSION = 1
WEIGHTS, RECORD = "model.safetensors", "model.json"


def save_model(model: JetModel, run: Path, *, provenance: Mapping[str, Any]) -> None:
    """Write weights and record into the folder ``run``; a reader sees both of them complete, or the former ones.

    Args:
        model: what to save; tensors are stored on the CPU in their own precision.
        run: folder, made if needed.
        provenance: how the model came about (data hashes, settings, metrics); anything JSON can hold.
    """
    run.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    record = {
        "format": "jetrep-model",
        "schema_version": SCHEMA_VERSION,
        "jetrep_version": __version__,
        "torch_version": str(torch.__version__),
        "config": asdict(model.config),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "provenance": dict(provenance),
    }
    with tempfile.TemporaryDirectory(dir=run, prefix=".saving-") as folder:
        save_file(weights, Path(folder) / WEIGHTS)
        (Path(folder) / RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n")
        for name in (WEIGHTS, RECORD):
            with (Path(folder) / name).open("rb") as stream:
                os.fsync(stream.fileno())
            (Path(folder) / name).replace(run / name)


def model_record(run: Path) -> dict[str, Any]:
    """The record of a saved model.

    Raises:
        InputError: if there is none, or it was written by a newer version.
    """
    path = run / RECORD
    if not path.is_file():
        raise InputError(
            "there is no trained model here", file=path, remedy="give the --out folder of pretrain or finetune"
        )
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error})", file=path, remedy="train again, or restore the file") from error
    if not isinstance(record, dict) or record.get("format") != "jetrep-model":
        raise InputError("not the record of a jetrep model", file=path, remedy="give another folder")
    if record["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"written by a newer jetrep (schema {record['schema_version']} > {SCHEMA_VERSION})",
            file=path,
            remedy="upgrade jetrep",
        )
    return record


def weights_hash(run: Path) -> str:
    """Identity of the weights of a saved model (xxHash, 128 bits)."""
    model_record(run)
    return xxhash.xxh3_128_hexdigest((run / WEIGHTS).read_bytes())


def load_model(run: Path) -> JetModel:
    """Load a model that `save_model` wrote, on the CPU, ready for inference.

    Raises:
        InputError: if files are missing or damaged, a setting is unknown, or weights do not fit the configuration.
    """
    record = model_record(run)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=ModelConfig)
    try:
        config = parser.instantiate(parser.parse_object({"config": record["config"]})).config
    except Exception as error:
        raise InputError(
            f"the configuration cannot be used: {str(error).splitlines()[0]}",
            file=run / RECORD,
            remedy="use the version of jetrep that wrote it",
        ) from error
    model = JetModel(config)
    try:
        model.load_state_dict(load_file(run / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"weights cannot be read ({str(error).splitlines()[0]})", file=run / WEIGHTS, remedy="train again"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"weights do not fit the configuration ({' '.join(str(error).split())[:200]})",
            file=run / WEIGHTS,
            remedy="restore the pair of files that one run wrote",
        ) from error
    return model.eval()
