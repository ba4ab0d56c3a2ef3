"""Whole autoencoders at rest, beside the encoder of the run: ``autoencoder.safetensors`` and ``autoencoder.json``.

As with models (`jetrep.training.checkpoint`), loading runs no code that came with the files.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from jetrep.encoders.autoencoder import Autoencoder
from jetrep.encoders.build_autoencoder import build_autoencoder
from jetrep.errors import InputError
from jetrep.objectives.autoencoding import AutoencoderConfig, Autoencoding
from jetrep.report.files import replacing
from jetrep.training.checkpoint import load_model

__all__ = ["AUTOENCODER", "AUTOENCODER_WEIGHTS", "load_autoencoder", "save_autoencoder"]

SCHEMA_VERSION = 1
AUTOENCODER_WEIGHTS, AUTOENCODER = "autoencoder.safetensors", "autoencoder.json"


def save_autoencoder(objective: Autoencoding, run: Path) -> None:
    """Write the autoencoder of an objective into the folder ``run``; the record comes last.

    Raises:
        InputError: if the disk refuses.
    """
    autoencoder = objective.autoencoder
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in autoencoder.state_dict().items()}
    record = {
        "format": "jetrep-autoencoder",
        "schema_version": SCHEMA_VERSION,
        "objective": asdict(objective.config),
        "size": autoencoder.size,
        "n_parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
    }
    with replacing(run / AUTOENCODER_WEIGHTS) as stream:
        stream.write(save(weights))
    with replacing(run / AUTOENCODER) as stream:
        stream.write((json.dumps(record, indent=2) + "\n").encode())


def load_autoencoder(run: Path) -> Autoencoder:
    """The autoencoder of a run of `pretrain` with the objective "autoencoder", on the CPU, ready for inference.

    Raises:
        InputError: if there is none, files are missing or damaged, or they do not belong to the encoder of the run.
    """
    path = run / AUTOENCODER
    if not path.is_file():
        raise InputError(
            "there is no autoencoder here",
            file=path,
            remedy="give the --out folder of pretrain --objective.kind autoencoder",
        )
    model = load_model(run)
    config, size = _record(path)
    try:
        autoencoder = build_autoencoder(
            model.encoder, model.features, config.latent, config.decoder, config.set_decoder
        )
        autoencoder.load_state_dict(load_file(run / AUTOENCODER_WEIGHTS))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"weights cannot be read ({reason})", file=run / AUTOENCODER_WEIGHTS, remedy="train again"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"weights are those of another architecture ({' '.join(str(error).split())[:200]})",
            file=run / AUTOENCODER_WEIGHTS,
            remedy="restore the files that one run wrote",
        ) from error
    if autoencoder.size != size:
        raise InputError(
            f"the record says {size} numbers a jet, the autoencoder of these settings has {autoencoder.size}",
            file=path,
            field="size",
            remedy="restore the files that one run wrote",
        )
    return autoencoder.eval()


def _record(path: Path) -> tuple[AutoencoderConfig, int]:
    """Settings and size in a record; values are checked against the types of the dataclasses."""
    remedy = "use the version of jetrep that wrote it, or train again"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"not valid JSON ({error})", file=path, remedy="restore the file, or train again") from error
    if not isinstance(record, dict) or record.get("format") != "jetrep-autoencoder":
        raise InputError("not the record of a jetrep autoencoder", file=path, remedy="give another folder")
    schema, size = record.get("schema_version"), record.get("size")
    if not isinstance(schema, int) or not isinstance(size, int):
        raise InputError("schema version or size is not a number", file=path, remedy=remedy)
    if schema > SCHEMA_VERSION:
        raise InputError(
            f"written by a newer jetrep (schema {schema} > {SCHEMA_VERSION})", file=path, remedy="upgrade jetrep"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=AutoencoderConfig)
    try:
        parsed = parser.instantiate(parser.parse_object({"objective": dict(record["objective"])}))
        config: AutoencoderConfig = parsed.objective
    except InputError:
        raise
    except Exception as error:
        problem = f"the settings cannot be used: {str(error).splitlines()[0]}"
        raise InputError(problem, file=path, field="objective", remedy=remedy) from error
    return config, size
