"""Models at rest: ``model.safetensors`` (weights) and ``model.json`` (configuration, provenance).

Loading never runs code that came with a model: tensors are read by safetensors, settings by a closed vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from jsonargparse import ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from jetrep import __version__
from jetrep.encoders.build import KINDS
from jetrep.errors import InputError
from jetrep.features import Features
from jetrep.jets import Jets
from jetrep.model import JetModel, ModelConfig
from jetrep.objectives.tokenizer import VQTokenizer
from jetrep.report.files import replacing
from jetrep.training.devices import device_for

__all__ = [
    "SCHEMA_VERSION",
    "load_model",
    "load_tokenizer",
    "model_record",
    "save_model",
    "save_tokenizer",
    "tokenizer_record",
    "weights_hash",
]

SCHEMA_VERSION = 1
WEIGHTS, RECORD = "model.safetensors", "model.json"
TOKENIZER_WEIGHTS, TOKENIZER = "tokenizer.safetensors", "tokenizer.json"


def save_model(model: JetModel, run: Path, *, provenance: Mapping[str, Any]) -> None:
    """Write weights and record into the folder ``run``; a reader never sees half of either.

    The record comes last: where it stands, the weights are complete.

    Args:
        model: what to save; tensors are stored on the CPU in their own precision.
        run: folder, made if needed.
        provenance: how the model came about (data hashes, settings, metrics); anything JSON can hold.

    Raises:
        InputError: if the disk refuses.
    """
    config = asdict(model.config)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    record = {
        "format": "jetrep-model",
        "schema_version": SCHEMA_VERSION,
        "jetrep_version": __version__,
        "torch_version": str(torch.__version__),
        "config": config,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "provenance": dict(provenance),
    }
    text = json.dumps(record, indent=2, default=str) + "\n"
    with replacing(run / RECORD) as record_stream:
        record_stream.write(text.encode())
        record_stream.flush()  # a full disk shows before the weights are replaced
        with replacing(run / WEIGHTS) as stream:
            stream.write(save(weights))


def save_tokenizer(tokenizer: VQTokenizer, features: Features, jets: Jets, run: Path) -> None:
    """Write a tokeniser into the folder ``run``, and beside it how many of its codes are used and how well it
    reconstructs ``jets`` (see `VQTokenizer.inspect`).
    """
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tokenizer.state_dict().items()})
    record = {
        **tokenizer.record(),
        "weights": xxhash.xxh3_128_hexdigest(weights),
        "inspection": tokenizer.inspect(features, jets),
    }
    with replacing(run / TOKENIZER_WEIGHTS) as stream:
        stream.write(weights)
    with replacing(run / TOKENIZER) as stream:
        stream.write((json.dumps(record, indent=2, default=str) + "\n").encode())


def tokenizer_record(run: Path) -> dict[str, Any]:
    """The record of a saved tokeniser, with the hash of its weights under "weights".

    Raises:
        InputError: if there is none, or its weights are not those that were saved with it.
    """
    file = run / TOKENIZER
    remedy = "give the folder of a pretraining with a tokeniser, such as --objective.target vq"
    if not file.is_file():
        raise InputError("there is no tokeniser here", file=file, remedy=remedy)
    try:
        record = json.loads(file.read_text())
        found = xxhash.xxh3_128_hexdigest((run / TOKENIZER_WEIGHTS).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"the tokeniser cannot be read ({error})", file=file, remedy=remedy) from error
    if not isinstance(record, dict):
        raise InputError("not the record of a tokeniser", file=file, remedy=remedy)
    if record.setdefault("weights", found) != found:
        raise InputError(
            "the weights are not those of the record: their hash disagrees",
            file=run / TOKENIZER_WEIGHTS,
            remedy="restore the pair of files that one run wrote",
        )
    return record


def load_tokenizer(run: Path, features: Features) -> VQTokenizer:
    """The tokeniser that `save_tokenizer` wrote, for the features of another run.

    Raises:
        InputError: if there is none, files are damaged or do not belong together, or it was made for other features;
            the message names the difference.
    """
    record = tokenizer_record(run)
    try:
        return VQTokenizer.from_record(record, load_file(run / TOKENIZER_WEIGHTS), features)
    except SafetensorError as error:
        raise InputError(
            f"the weights cannot be read ({error})", file=run / TOKENIZER_WEIGHTS, remedy="train it again"
        ) from error
    except InputError as error:
        raise InputError(error.problem, file=run / TOKENIZER, field=error.field, remedy=error.remedy) from error


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
    except (OSError, ValueError) as error:
        raise InputError(f"not valid JSON ({error})", file=path, remedy="train again, or restore the file") from error
    if not isinstance(record, dict) or record.get("format") != "jetrep-model":
        raise InputError("not the record of a jetrep model", file=path, remedy="give another folder")
    schema = record.get("schema_version")
    if not isinstance(schema, int):
        raise InputError(f"schema version {schema!r} is not a number", file=path, remedy="give another folder")
    if schema > SCHEMA_VERSION:
        raise InputError(
            f"written by a newer jetrep (schema {schema} > {SCHEMA_VERSION})",
            file=path,
            remedy="upgrade jetrep",
        )
    return record


def weights_hash(run: Path) -> str:
    """Identity of the weights of a saved model (xxHash, 128 bits)."""
    model_record(run)
    try:
        return xxhash.xxh3_128_hexdigest((run / WEIGHTS).read_bytes())
    except OSError as error:
        raise _unreadable(run, error) from error


def load_model(run: Path, accelerator: str = "cpu") -> JetModel:
    """Load a model that `save_model` wrote, ready for inference.

    Args:
        run: the folder.
        accelerator: where it stands, as in `EngineConfig`: "auto" takes a GPU if there is one.

    Raises:
        InputError: if files are missing or damaged, a setting is unknown, or weights do not fit the configuration.
    """
    model = JetModel(_model_config(model_record(run), run / RECORD))
    try:
        model.load_state_dict(load_file(run / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise _unreadable(run, error) from error
    except RuntimeError as error:
        raise InputError(
            f"weights do not fit the configuration ({' '.join(str(error).split())[:200]})",
            file=run / WEIGHTS,
            remedy="restore the pair of files that one run wrote",
        ) from error
    return model.eval().to(device_for(accelerator))


def _model_config(record: Mapping[str, Any], file: Path) -> ModelConfig:
    """The configuration in a record; its values are checked against the types of the dataclasses."""
    remedy = "use the version of jetrep that wrote it"
    try:
        settings = dict(record["config"])
        encoder = dict(settings.pop("encoder"))
        # Records from before there were several kinds do not name theirs.
        kind = encoder.get("kind", "transformer")
        if kind not in KINDS:
            raise InputError(
                f"there is no encoder of kind {kind!r}", file=file, field="encoder", remedy=f"known: {', '.join(KINDS)}"
            )
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", type=ModelConfig)
        parser.add_argument("--encoder", type=KINDS[kind])
        parsed = parser.instantiate(parser.parse_object({"config": settings, "encoder": encoder}))
        config: ModelConfig = replace(parsed.config, encoder=parsed.encoder)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the configuration cannot be used: {str(error).splitlines()[0]}", file=file, remedy=remedy
        ) from error
    return config


def _unreadable(run: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return InputError(f"weights cannot be read ({reason})", file=run / WEIGHTS, remedy="train again")
