"""The protocol of the transfer study for one seed: which taggers are trained, on what, and what they see."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from jetrep.encoders.transformer import SIZES, TransformerConfig
from jetrep.errors import InputError, at_least
from jetrep.evaluation.probes import ProbeKind, observables, probe
from jetrep.features import FeatureConfig
from jetrep.jets import Jets
from jetrep.model import ClassifierConfig
from jetrep.objectives.self_distillation import PRESETS, SelfDistillationConfig
from jetrep.report.files import replacing
from jetrep.studies.probe import randomized
from jetrep.training.checkpoint import load_model
from jetrep.training.data import check_apart, data_hashes, load_jets, load_labelled
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.finetune import finetune, stratified_subset
from jetrep.training.pretrain import pretrain
from jetrep.training.run import settings_of

__all__ = ["COLLISIONS", "SIMULATION", "TARGET_LABELS", "Finetuning", "Pretraining", "Protocol", "Scores", "Stores"]

SIMULATION, COLLISIONS, TARGET_LABELS = "simulation", "collisions", "collisions, own labels"
Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Pretraining:
    """Self-supervised pretraining, as in `pretrain`.

    Attributes:
        features: particle features.
        encoder: architecture, also of the supervised and random baselines.
        objective: self-distillation.
        optimizer: the optimiser and its schedule.
        epochs: passes over the unlabelled jets.
        batch_size: jets per step.
    """

    features: FeatureConfig = FeatureConfig()
    encoder: TransformerConfig = SIZES["laptop"]
    objective: SelfDistillationConfig = PRESETS["small_batch"]
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-3, layer_decay=0.9)
    epochs: int = 10
    batch_size: int = 128


@dataclass(frozen=True)
class Finetuning:
    """Supervised training, as in `finetune`, alike for all taggers.

    Attributes:
        optimizer: the optimiser and its schedule.
        epochs: passes over the labelled jets.
        patience: epochs without improvement before training stops.
        batch_size: jets per step.
        encoder_lr: learning rate of a pretrained encoder, as a fraction of the head's.
        head: the MLP heads; the linear heads have no hidden layer.
        n_labels: labelled jets of simulation; all by default.
        n_target_labels: labelled jets of the collisions' domain, for the probes trained there; all by default.
    """

    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: int = 20
    patience: int = 5
    batch_size: int = 128
    encoder_lr: float = 0.1
    head: ClassifierConfig = ClassifierConfig()
    n_labels: int | None = None
    n_target_labels: int | None = None

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, patience=self.patience, batch_size=self.batch_size)
        at_least(1, n_labels=self.n_labels, n_target_labels=self.n_target_labels)
        at_least(0, encoder_lr=self.encoder_lr)


@dataclass(frozen=True)
class Stores:
    """Where the jets of the study are; see `transfer`."""

    collisions: list[Path]
    simulation: list[Path]
    simulation_test: list[Path]
    collisions_test: list[Path]
    collisions_labelled: list[Path] | None = None

    def hashes(self) -> dict[str, dict[str, str]]:
        """Content of every store."""
        # By field, since `vars` holds the cached properties too.
        return {field.name: dict(data_hashes(getattr(self, field.name) or [])) for field in fields(self)}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Background first: qcd, then the one signal.

        Raises:
            InputError: if the simulation is unlabelled, or not of the classes qcd and one signal.
        """
        names = load_jets(self.simulation, labelled=True).classes
        if len(names) != 2 or "qcd" not in names:
            raise InputError(
                f"the study separates one signal from qcd, not {', '.join(names)}",
                file=self.simulation[0],
                field="classes",
                remedy="prepare the simulation with the classes qcd and the signal",
            )
        return ("qcd", *(name for name in names if name != "qcd"))

    @cached_property
    def tests(self) -> Mapping[str, Jets]:
        """Test jets of both domains."""
        stores = {SIMULATION: self.simulation_test, COLLISIONS: self.collisions_test}
        return {domain: self.labelled(paths) for domain, paths in stores.items()}

    def labelled(self, stores: list[Path], n: int | None = None) -> Jets:
        """All jets of ``stores``, labelled by `classes`, of both of which there are some, and at least ``n``.

        Raises:
            InputError: if they are not such jets.
        """
        jets = load_labelled(stores, self.classes)
        if len(present := np.unique(jets.truth)) < 2:
            names = ", ".join(self.classes[label] for label in present)
            raise InputError(f"all jets are {names}", file=stores[0], field="label", remedy="give jets of both classes")
        if n is not None and n > len(jets):
            raise InputError(f"holds {len(jets)} jets, fewer than {n}", file=stores[0], remedy="ask for fewer")
        return jets

    def check(self, finetuning: Finetuning) -> None:
        """Look at all jets before the first of them is trained on, for mistakes that would show after hours.

        Raises:
            InputError: naming a store that the study cannot use.
        """
        load_jets(self.collisions, labelled=False)
        self.labelled(self.simulation, finetuning.n_labels)
        if self.collisions_labelled:
            self.labelled(self.collisions_labelled, finetuning.n_target_labels)
        assert self.tests
        trained_on = [*self.collisions, *self.simulation, *(self.collisions_labelled or [])]
        check_apart(trained_on, self.simulation_test, "simulation_test")
        check_apart(trained_on, self.collisions_test, "collisions_test")


@dataclass(frozen=True)
class View:
    """How jets of both domains are shown to a tagger."""

    name: str
    n_subjets: int = 0
    max_particles: int | None = None


@dataclass
class Protocol:
    """Everything that is trained and scored under one seed; results are kept in ``folder`` and found again there.

    Attributes:
        stores: the jets.
        pretraining: settings of the pretraining.
        finetuning: settings of the taggers.
        n_subjets: number of subjets of the scale-matched view.
        max_particles: number of particles of the truncation-matched view.
        seed: seed of everything.
        folder: where models and scores go.
        engine: hardware, precision and logs.
        quiet: show no progress.
    """

    stores: Stores
    pretraining: Pretraining
    finetuning: Finetuning
    n_subjets: int
    max_particles: int
    seed: int
    folder: Path
    engine: EngineConfig = field(default_factory=EngineConfig)
    quiet: bool = False

    def rows(self) -> Iterator[tuple[str, Callable[[], Scores]]]:
        """The rows of the table: a name, and what computes the scores of all test jets."""
        everything, matched = View("all particles"), View(f"{self.n_subjets} subjets", n_subjets=self.n_subjets)
        truncated = View(f"{self.max_particles} leading", max_particles=self.max_particles)
        linear, mlp = ClassifierConfig(hidden=()), self.finetuning.head
        for view in (everything, truncated, matched):
            yield f"supervised ({view.name})", self._tagger("supervised", view, mlp, pretrained=False)
        for view in (everything, matched):
            yield f"RINO, linear head ({view.name})", self._tagger("rino-linear", view, linear, pretrained=True)
            yield f"RINO, MLP head ({view.name})", self._tagger("rino-mlp", view, mlp, pretrained=True)
        for view in (everything, matched):
            yield f"frozen RINO, probe ({view.name})", self._probe(view, random=False)
            yield f"frozen random weights, probe ({view.name})", self._probe(view, random=True)
        yield "jet mass, multiplicity", self._cached("observables", lambda: self._scores(observables, "bdt"))

    def pretrained(self) -> Path:
        """The pretrained run, trained now if it is not there."""
        settings = {field.name: getattr(self.pretraining, field.name) for field in fields(self.pretraining)}
        out = self.folder / "pretrain"
        # Asked for by every row that needs it; only the first time there is something to tell.
        common = self._common() | {"quiet": self.quiet or (out / "model.json").exists()}
        return pretrain(self.stores.collisions, out=out, **settings, **common)

    def _common(self) -> dict[str, Any]:
        return {"seed": self.seed, "engine": self.engine, "quiet": self.quiet}

    def _tagger(self, name: str, view: View, head: ClassifierConfig, *, pretrained: bool) -> Callable[[], Scores]:
        slug = f"{name}-{view.name}".replace(" ", "-")

        def compute() -> Scores:
            tuning = self.finetuning
            run = finetune(
                self.stores.simulation,
                out=self.folder / slug,
                from_run=self.pretrained() if pretrained else "none",
                features=self.pretraining.features,
                encoder=self.pretraining.encoder,
                head=head,
                n_subjets=view.n_subjets,
                max_particles=view.max_particles,
                n_labels=tuning.n_labels,
                encoder_lr=tuning.encoder_lr,
                optimizer=tuning.optimizer,
                epochs=tuning.epochs,
                patience=tuning.patience,
                batch_size=tuning.batch_size,
                **self._common(),
            )
            tagger = load_model(run, self.engine.accelerator)
            signal = tagger.config.classes.index(self.stores.classes[1])
            return {domain: tagger.predict(jets)[:, signal].astype(float) for domain, jets in self.stores.tests.items()}

        return self._cached(slug, compute)

    def _probe(self, view: View, *, random: bool) -> Callable[[], Scores]:
        def compute() -> Scores:
            model = load_model(self.pretrained(), self.engine.accelerator)
            if random:
                model = randomized(model, self.seed)
            return self._scores(model.with_view(view.n_subjets, view.max_particles).embed, "logistic")

        return self._cached(f"{'random' if random else 'frozen'}-{view.name}".replace(" ", "-"), compute)

    def _scores(self, embedding_of: Callable[[Jets], NDArray[Any]], kind: ProbeKind) -> Scores:
        """Probes trained on simulation and judged on both domains; and trained and judged on collisions."""
        tests = {domain: embedding_of(jets) for domain, jets in self.stores.tests.items()}
        train = self._labelled(self.stores.simulation, self.finetuning.n_labels)
        x = embedding_of(train)
        scores = {domain: probe(x, train.truth, test, kind, seed=self.seed) for domain, test in tests.items()}
        if self.stores.collisions_labelled:
            train = self._labelled(self.stores.collisions_labelled, self.finetuning.n_target_labels)
            scores[TARGET_LABELS] = probe(embedding_of(train), train.truth, tests[COLLISIONS], kind, seed=self.seed)
        return scores

    def _labelled(self, stores: list[Path], n: int | None) -> Jets:
        jets = self.stores.labelled(stores)
        return jets[stratified_subset(jets.truth, n, self.seed)]

    def _cached(self, slug: str, compute: Callable[[], Scores]) -> Callable[[], Scores]:
        """``compute``, or what it gave before under the same settings and data."""
        file = self.folder / "scores" / f"{slug}.npz"
        data = {name: list(hashes.values()) for name, hashes in self.stores.hashes().items()}  # wherever they are
        settings = [settings_of(self.pretraining), settings_of(self.finetuning), data, self.seed, slug]
        key = sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

        def scores() -> Scores:
            if (found := _read_scores(file, key)) is not None:
                return found
            result = compute()
            arrays: dict[str, Any] = {"key": np.array(key), **result}
            with replacing(file) as stream:
                np.savez(stream, **arrays)
            return result

        return scores


def _read_scores(file: Path, key: str) -> Scores | None:
    """Scores that were computed under the same key; None if there are none, or the file is damaged."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            same = str(saved["key"]) == key
            return {name: saved[name] for name in saved.files if name != "key"} if same else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None
