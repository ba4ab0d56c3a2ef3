"""What a comparison compares: rows, seeds, jets, and everything that all of its cells have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jetrep.encoders.base import Pooling
from jetrep.encoders.build import EncoderConfig
from jetrep.errors import InputError, at_least
from jetrep.features import FeatureConfig
from jetrep.jets import Jets
from jetrep.model import ClassifierConfig
from jetrep.objectives.build import ObjectiveConfig
from jetrep.report.files import replacing
from jetrep.training.data import data_hashes, load_jets, load_labelled, open_pool
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.run import settings_of

__all__ = ["Baseline", "Row", "Study", "TaggerTraining", "read_json", "write_json"]

Baseline = Literal["supervised", "random", "observables"]


@dataclass(frozen=True)
class TaggerTraining:
    """Supervised training, as in `finetune`, alike for all rows.

    Attributes:
        optimizer: the optimiser and its schedule.
        epochs: passes over the labelled jets.
        patience: epochs without improvement before training stops.
        batch_size: jets per step.
        encoder_lr: learning rate of a pretrained encoder, as a fraction of the head's.
        head: the classifier head.
        pooling: what it sees: class token, mean over particles, or both.
    """

    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: int = 20
    patience: int = 5
    batch_size: int = 128
    encoder_lr: float = 0.1
    head: ClassifierConfig = ClassifierConfig()
    pooling: Pooling = field(default="cls+mean", metadata={"later": True})

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, patience=self.patience, batch_size=self.batch_size)
        at_least(0, encoder_lr=self.encoder_lr)


@dataclass(frozen=True)
class Row:
    """One row of the comparison: an objective, or a baseline.

    Attributes:
        name: as it stands in tables.
        objective: what is learned, or the name of the baseline.
        optimizer: of its pretraining.
        encoder: its architecture.
        features: what the encoder sees.
        head: the classifier head of its taggers.
    """

    name: str
    objective: ObjectiveConfig | Baseline
    optimizer: OptimizerConfig
    encoder: EncoderConfig
    features: FeatureConfig
    head: ClassifierConfig

    @property
    def kind(self) -> str:
        """Kind of the objective, or name of the baseline."""
        return self.objective if isinstance(self.objective, str) else self.objective.kind

    @property
    def folder_name(self) -> str:
        """The name, as far as a folder can have it."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name)


@dataclass
class Study:
    """Everything that the cells have in common; see `jetrep.compare` for what is not told here.

    Attributes:
        rows: rows of the comparison.
        reference: name of the row from which others of its kind are told apart, seed by seed; "" if none is.
        encoder: the encoder of all rows that have none of their own.
        features: the features of those that have none of their own.
        seeds: number of seeds.
        background: class against which each other class is tagged.
        efficiencies: signal efficiency of the rejection, by class.
    """

    train: list[Path]
    test: list[Path]
    unlabelled: list[Path] | None
    out: Path
    rows: list[Row]
    seeds: int
    features: FeatureConfig
    encoder: EncoderConfig
    epochs: int
    batch_size: int
    budget: Literal["steps", "flops"]
    finetuning: TaggerTraining
    n_labels: list[int]
    background: str
    efficiencies: dict[str, float]
    max_jets: int | None
    max_test_jets: int | None
    max_probe_jets: int
    max_particles: int | None
    n_bootstrap: int
    reference: str = ""
    engine: EngineConfig = field(default_factory=EngineConfig)
    quiet: bool = False

    @property
    def cells(self) -> list[tuple[Row, int]]:
        """All cells, in the order of their numbers."""
        return [(row, seed) for seed in range(self.seeds) for row in self.rows]

    def folder(self, row: Row, seed: int) -> Path:
        """The folder of a cell."""
        return self.out / "cells" / f"{row.folder_name}-seed-{seed}"

    @cached_property
    def data(self) -> dict[str, Any]:
        """Content of every store."""
        stores = {"train": self.train, "test": self.test, "unlabelled": self.unlabelled or []}
        # By content alone: a store may be moved between two commands.
        return {name: list(data_hashes(paths).values()) for name, paths in stores.items()}

    def settings(self, row: Row, seed: int) -> dict[str, Any]:
        """What determines the numbers of a cell, as JSON gives it back."""
        common = (
            *("epochs", "batch_size", "budget", "n_labels", "background", "efficiencies"),
            *("max_jets", "max_test_jets", "max_probe_jets", "max_particles", "n_bootstrap"),
        )
        settings = {
            "name": row.name,
            "objective": settings_of(row.objective),
            "optimizer": settings_of(row.optimizer),
            "seed": seed,
            "features": settings_of(row.features),
            "encoder": settings_of(row.encoder),
            "finetuning": settings_of(replace(self.finetuning, head=row.head)),
            "data": self.data,
            **{name: getattr(self, name) for name in common},
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return plain

    @cached_property
    def train_jets(self) -> Jets:
        """Labelled jets to train on."""
        return load_jets(self.train, labelled=True, max_jets=self.max_jets)

    @cached_property
    def test_jets(self) -> Jets:
        """Jets to judge on, labelled as those to train on."""
        return load_labelled(self.test, self.train_jets.classes, max_jets=self.max_test_jets)

    @cached_property
    def steps(self) -> int:
        """Steps of each pretraining of the budget "steps"."""
        stores = self.unlabelled or self.train
        pool = open_pool(stores, labelled=False, max_jets=self.max_jets, history=False)
        return self.epochs * (len(pool) // self.batch_size)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, under a temporary name first."""
    with replacing(file) as stream:
        stream.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot be read ({problem})", file=file, remedy="remove the cell's folder") from problem
    return content
