"""One cell of a comparison: one way to learn under one seed, everything that is trained for it, and its numbers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.evaluation.multiclass import accuracy, confusion, macro_auc
from jetrep.evaluation.probes import ProbeKind, observables, probe
from jetrep.evaluation.tagging import discriminant, working_points
from jetrep.jets import Jets
from jetrep.model import JetModel, ModelConfig
from jetrep.report.files import replacing
from jetrep.report.measurement import Measurement
from jetrep.store.folder import locked
from jetrep.studies.compare_costs import parameters_of, step_flops, steps_of
from jetrep.studies.compare_study import Row, Study, read_json, write_json
from jetrep.studies.environment import environment
from jetrep.training.checkpoint import RECORD, load_model, model_record, save_model
from jetrep.training.data import open_pool
from jetrep.training.finetune import finetune, stratified_subset
from jetrep.training.pretrain import initial_encoder, pretrain

__all__ = ["FINETUNE", "read_cell", "read_scores", "run_cell"]

FINETUNE = "finetune"
_RATES = (0.01, 0.001)
_SETTINGS, _RESULT, _SECONDS, _SCORES = "settings.json", "cell.json", "seconds.json", "scores.npz"
_MOST_SCORES = 1_000_000  # that are kept of a head: with more, the errors of all differences would take an hour


def read_cell(study: Study, row: Row, seed: int) -> dict[str, Any] | None:
    """The numbers of a cell, or None if it is not finished.

    Raises:
        InputError: if the cell was made with other settings, or its files cannot be read.
    """
    folder = study.folder(row, seed)
    if not (folder / _SETTINGS).exists():
        return None
    found, wanted = read_json(folder / _SETTINGS), study.settings(row, seed)
    if found != wanted:
        changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise InputError(
            f"the cell was made with other settings ({', '.join(changed)})",
            file=folder,
            remedy="choose another --out, or --overwrite",
        )
    return read_json(folder / _RESULT) if (folder / _RESULT).exists() else None


def read_scores(study: Study, row: Row, seed: int, head: str) -> NDArray[np.float64] | None:
    """(n_test, n_classes) probabilities of one head of a finished cell, or None if they were not kept."""
    file = study.folder(row, seed) / _SCORES
    if not file.exists():
        return None
    try:
        with np.load(file) as scores:
            return scores[head].astype(np.float64) if head in scores else None
    except (OSError, ValueError, BadZipFile) as problem:
        raise InputError(f"cannot be read ({problem})", file=file, remedy="remove the cell's folder") from problem


def run_cell(study: Study, index: int, overwrite: bool = False) -> dict[str, Any]:
    """Train and judge cell number ``index``, or go on with it; what is there already is not made again.

    Raises:
        InputError: if another process is at the same cell.
    """
    row, seed = study.cells[index]
    folder = study.folder(row, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, "computing this cell"):
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        done = read_cell(study, row, seed)
        if done is not None:
            return done
        write_json(folder / _SETTINGS, study.settings(row, seed))
        result = _Cell(study, row, seed, folder).compute() | {"environment": environment(study.engine)}
        write_json(folder / _RESULT, result)
    return result


@dataclass
class _Cell:
    study: Study
    row: Row
    seed: int
    folder: Path
    results: list[dict[str, Any]] = field(default_factory=list)
    confusions: dict[str, list[list[int]]] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def compute(self) -> dict[str, Any]:
        """All numbers of the cell."""
        study = self.study
        numbers = [*study.n_labels, None]
        costs, steps = self._costs(), 0
        if self.row.objective == "observables":
            for n in numbers:
                self._probes(n, {"": observables(self.probe_jets)}, {"": observables(study.test_jets)})
        elif self.row.objective == "supervised":
            for n in numbers:
                model, steps = self._supervised(n)
                self._judge(FINETUNE, n, model.predict(study.test_jets, quiet=study.quiet).astype(float))
                self._embedded(model, [n])
        else:
            run, steps = self._encoder()
            self._embedded(load_model(run, study.engine.accelerator), numbers)
            for n in numbers:
                model = self._finetuned(run, n)
                self._judge(FINETUNE, n, model.predict(study.test_jets, quiet=study.quiet).astype(float))
        with replacing(self.folder / _SCORES) as stream:
            np.savez(stream, **self.scores)  # type: ignore[arg-type]
        costs |= {"steps": steps, **self._total_seconds()}
        return {"results": self.results, "confusions": self.confusions, "costs": costs}

    def _costs(self) -> dict[str, float | None]:
        """Parameters and operations, known before anything is trained."""
        row, study = self.row, self.study
        if row.objective == "observables":
            return {"parameters": 0, "flops_per_jet": None, "step_flops_per_jet": None}
        return {
            "parameters": parameters_of(row),
            "flops_per_jet": step_flops(study, row, "forward"),
            "step_flops_per_jet": None if row.objective == "random" else step_flops(study, row, row.objective),
        }

    def _encoder(self) -> tuple[Path, int]:
        """A run with the encoder of the row: pretrained, or as pretraining would have begun."""
        study, row, out = self.study, self.row, self.folder / "pretrain"
        if row.objective == "random":
            if not (out / RECORD).exists():
                pool = open_pool(
                    study.unlabelled or study.train,
                    labelled=False,
                    history=False,
                    max_jets=study.max_jets,
                    columns=row.features.columns,
                    max_particles=study.max_particles,
                )
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    inputs, network = initial_encoder(pool, row.features, row.encoder)
                config = ModelConfig(row.features, row.encoder, max_particles=study.max_particles)
                save_model(JetModel(config, inputs, network), out, provenance={"seed": self.seed})
            return out, 0
        assert not isinstance(row.objective, str)
        steps = steps_of(study, row)
        with self._timed("pretrain", out):
            pretrain(
                study.unlabelled or study.train,
                out=out,
                features=row.features,
                encoder=row.encoder,
                objective=row.objective,
                optimizer=row.optimizer,
                steps=steps,
                batch_size=study.batch_size,
                max_jets=study.max_jets,
                max_particles=study.max_particles,
                seed=self.seed,
                engine=study.engine,
                quiet=study.quiet,
            )
        return out, steps

    def _supervised(self, n: int | None) -> tuple[JetModel, int]:
        """From scratch on ``n`` labels, for as many steps as the pretraining of the others."""
        study = self.study
        held_out = max(1, round(0.15 * (n or len(study.train_jets))))
        n_train = (n or len(study.train_jets)) - held_out
        per_epoch = n_train // min(n_train, study.batch_size)
        epochs = max(1, round(steps_of(study, self.row) / per_epoch))  # steps come in whole epochs here
        run = self._tagger(
            f"supervised-{_label(n)}",
            n,
            from_run="none",
            optimizer=self.row.optimizer,
            epochs=epochs,
            patience=epochs,
            batch_size=study.batch_size,
        )
        return load_model(run, study.engine.accelerator), epochs * per_epoch

    def _finetuned(self, run: Path, n: int | None) -> JetModel:
        """The tagger on top of an encoder, alike for a random one: what it gains by its own training is no merit."""
        tuning = self.study.finetuning
        tuned = self._tagger(
            f"{FINETUNE}-{_label(n)}",
            n,
            from_run=run,
            optimizer=tuning.optimizer,
            epochs=tuning.epochs,
            patience=tuning.patience,
            batch_size=tuning.batch_size,
        )
        return load_model(tuned, self.study.engine.accelerator)

    def _tagger(self, name: str, n: int | None, *, from_run: Path | Literal["none"], **training: Any) -> Path:
        study, out = self.study, self.folder / name
        with self._timed(name, out):
            finetune(
                study.train,
                out=out,
                from_run=from_run,
                encoder=self.row.encoder,
                features=self.row.features,
                head=self.row.head,
                pooling=study.finetuning.pooling,
                encoder_lr=study.finetuning.encoder_lr,
                n_labels=n,
                max_jets=study.max_jets,
                max_particles=study.max_particles,
                seed=self.seed,
                engine=study.engine,
                quiet=study.quiet,
                **training,
            )
        return out

    def _embedded(self, model: JetModel, numbers: list[int | None]) -> None:
        """k-NN and linear probes on the embeddings of an encoder, trained on these numbers of labels."""
        width = model.config.encoder.width
        embedded = [_cls_and_mean(model, jets, self.study.quiet) for jets in (self.probe_jets, self.study.test_jets)]
        train, test = ({"": x, "cls": x[:, :width], "mean": x[:, width:]} for x in embedded)
        for n in numbers:
            self._probes(n, train, test)

    @cached_property
    def probe_jets(self) -> Jets:
        """As many as a probe may be trained on; the first n of them are those of a probe of n labels."""
        jets = self.study.train_jets
        return jets[stratified_subset(jets.truth, min(len(jets), self.study.max_probe_jets), self.seed)]

    def _probes(self, n: int | None, train: Mapping[str, NDArray[Any]], test: Mapping[str, NDArray[Any]]) -> None:
        """Probes on the first ``n`` of the jets for them, or on all; of embeddings by the name of the view."""
        n = len(self.probe_jets) if n is None else n
        if n > len(self.probe_jets):
            return
        labels = self.probe_jets.truth[:n]
        heads: list[tuple[str, ProbeKind, str]] = [("knn", "knn", "")]
        if "cls" in train:
            heads += [("linear_cls", "logistic", "cls"), ("linear_mean", "logistic", "mean")]
        else:
            heads += [("linear", "logistic", ""), ("bdt", "bdt", "")]
        for head, kind, view in heads:
            x, y = train[view], test[view]
            if not x.shape[1]:
                continue  # an encoder without a class token apart from its pooled particles has one vector alone
            scores = probe(x[:n], labels, y, kind, seed=self.seed)
            self._judge(head, n, scores if scores.ndim == 2 else np.stack([1 - scores, scores], -1))

    def _judge(self, head: str, n: int | None, probabilities: NDArray[np.float64]) -> None:
        """Note all metrics of one head; of the largest number of labels also its scores and the confusion matrix."""
        study = self.study
        truth, classes = study.test_jets.truth, study.test_jets.classes
        found: list[tuple[str, str, Measurement]] = [
            ("accuracy", "", accuracy(probabilities, truth)),
            ("auc_ovo", "", macro_auc(probabilities, truth)),
        ]
        background = classes.index(study.background)
        for signal, name in enumerate(classes):
            if signal == background:
                continue
            score, is_signal = discriminant(probabilities, truth, signal=signal, background=background)
            auc, rejection, efficiencies = working_points(
                score,
                is_signal,
                efficiency=study.efficiencies[name],
                background_rates=_RATES,
                n_bootstrap=study.n_bootstrap,
                seed=self.seed,
            )
            found += [("auc", name, auc), ("rejection", name, rejection)]
            found += [(f"efficiency_at_{rate:g}", name, m) for rate, m in efficiencies.items()]
        n = len(study.train_jets) if n is None else n
        self.results += [
            {"head": head, "n_labels": n, "metric": metric, "signal": signal, "measurement": m.to_json()}
            for metric, signal, m in found
        ]
        self.confusions[head] = confusion(probabilities, truth).tolist()
        if probabilities.size <= _MOST_SCORES:
            self.scores[head] = probabilities.astype(np.float32)

    @contextmanager
    def _timed(self, name: str, run: Path) -> Iterator[None]:
        """Note how long a training took, in all attempts that had the time to tell."""
        there = (run / RECORD).exists()
        devices = self.study.engine.processes
        began, cpu = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            file = self.folder / _SECONDS
            seconds = read_json(file) if file.exists() else {}
            if not (there and name in seconds):
                wall, used = time.monotonic() - began, time.process_time() - cpu
                if there:  # by a command that was killed before it could note the time
                    wall = used = float(model_record(run)["provenance"].get("seconds", 0.0))
                on_gpu = self.study.engine.accelerator != "cpu" and torch.cuda.is_available()
                spent = {"seconds": wall, "device_seconds": wall * devices if on_gpu else used}
                before = seconds.get(name, {})
                total = {key: value + before.get(key, 0.0) for key, value in spent.items()}
                write_json(file, seconds | {name: total})

    def _total_seconds(self) -> dict[str, float]:
        file = self.folder / _SECONDS
        parts = read_json(file).values() if file.exists() else ()
        return {key: round(sum(part[key] for part in parts), 2) for key in ("seconds", "device_seconds")}


def _cls_and_mean(model: JetModel, jets: Jets, quiet: bool) -> NDArray[np.float32]:
    """(n_jets, 2 · width) class and mean token; (n_jets, width) of an encoder that has one vector alone."""
    old = model.config
    config = ModelConfig(old.features, old.encoder, pooling="cls+mean", max_particles=old.max_particles)
    return JetModel(config, model.features, model.encoder).eval().embed(jets, quiet=quiet)


def _label(n: int | None) -> str:
    return "all" if n is None else str(n)
