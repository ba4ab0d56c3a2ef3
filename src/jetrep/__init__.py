"""Representations of particle jets, learned without labels, that hold on real data.

Every verb of the command line is a function of this package, ``jetrep.pretrain`` for instance; containers and models
are here too. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jetrep.errors import InputError, JetrepError
    from jetrep.jets import JetBatch, Jets
    from jetrep.model import JetModel
    from jetrep.store.catalog_verbs import datasets, download
    from jetrep.store.prepare import prepare
    from jetrep.store.reader import Store
    from jetrep.store.simulate import simulate
    from jetrep.studies.audit import audit
    from jetrep.studies.compare import compare
    from jetrep.studies.compress import compress
    from jetrep.studies.demo import demo
    from jetrep.studies.embed import embed
    from jetrep.studies.evaluate import evaluate
    from jetrep.studies.import_weights import import_weights
    from jetrep.studies.inspect import inspect
    from jetrep.studies.probe import probe
    from jetrep.studies.transfer import transfer
    from jetrep.training.checkpoint import load_model
    from jetrep.training.finetune import finetune
    from jetrep.training.pretrain import pretrain

_HOME = {
    "InputError": "errors",
    "JetrepError": "errors",
    "JetBatch": "jets",
    "Jets": "jets",
    "JetModel": "model",
    "Store": "store.reader",
    "audit": "studies.audit",
    "compare": "studies.compare",
    "compress": "studies.compress",
    "datasets": "store.catalog_verbs",
    "demo": "studies.demo",
    "download": "store.catalog_verbs",
    "embed": "studies.embed",
    "evaluate": "studies.evaluate",
    "finetune": "training.finetune",
    "import_weights": "studies.import_weights",
    "inspect": "studies.inspect",
    "load_model": "training.checkpoint",
    "prepare": "store.prepare",
    "pretrain": "training.pretrain",
    "probe": "studies.probe",
    "simulate": "store.simulate",
    "transfer": "studies.transfer",
}

__all__ = [
    "InputError",
    "JetBatch",
    "JetModel",
    "JetrepError",
    "Jets",
    "Store",
    "__version__",
    "audit",
    "compare",
    "compress",
    "datasets",
    "demo",
    "download",
    "embed",
    "evaluate",
    "finetune",
    "import_weights",
    "inspect",
    "load_model",
    "prepare",
    "pretrain",
    "probe",
    "simulate",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jetrep' has no attribute '{name}'")
    return getattr(importlib.import_module(f"jetrep.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
