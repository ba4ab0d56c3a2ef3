"""What learning costs, and what a budget of operations leaves of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig
from jetrep.model import ClassifierConfig
from jetrep.objectives.build import OBJECTIVES
from jetrep.objectives.targets import Identity
from jetrep.objectives.tokenizer import TokenizerConfig
from jetrep.studies.compare_costs import step_flops, steps_of
from jetrep.studies.compare_rows import rows_of
from jetrep.studies.compare_study import Row, TaggerTraining
from jetrep.training.engine import OptimizerConfig
from prong_jets import prong_jets, write_store

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=32)
USUAL = Row("", "supervised", OptimizerConfig(), ENCODER, FeatureConfig(), ClassifierConfig())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "train", prong_jets(160, 1))


def study_of(store, **changes):
    """As much of a study as the costs depend on."""
    settings = {"train": [store], "unlabelled": None, "max_jets": None, "max_particles": None, "batch_size": 16}
    return SimpleNamespace(**settings | changes)


@pytest.mark.parametrize("kind", [config.kind for config in OBJECTIVES])
def test_the_cost_of_every_objective_is_known_before_it_is_trained(store, kind):
    [row] = rows_of([kind], USUAL, None)
    assert step_flops(study_of(store), row, row.objective) > 0


def test_the_cost_is_known_of_what_needs_more_than_the_features(tmp_path):
    """Types of particles are predicted by an encoder that does not see them."""
    jets = prong_jets(40, 3)
    measured = {name: np.ones(len(jets.p4), np.float32) for name in Identity.COLUMNS}
    store = write_store(tmp_path / "typed", replace(jets, measured=measured))
    given = {"kind": "masked_particles", "n_codes": 8}
    rows = [given | {"name": "plain"}, given | {"name": "typed", "identity_weight": 0.3}]
    plain, typed = (step_flops(study_of(store), row, row.objective) for row in rows_of(rows, USUAL, None))
    assert plain < typed


def test_a_tokeniser_is_paid_from_the_budget_of_flops(store):
    net = SetTransformerConfig(width=8, depth=1, heads=1)
    study = study_of(
        store,
        budget="flops",
        steps=1000,
        encoder=ENCODER,
        features=FeatureConfig(),
        finetuning=TaggerTraining(),
        train_jets=prong_jets(40),
    )

    def steps(n):
        tokenizer = TokenizerConfig(n_codes=8, net=net, batch_size=4, steps=n)
        [row] = rows_of(["next_token"], USUAL, None)
        return steps_of(study, replace(row, objective=replace(row.objective, tokenizer=tokenizer)))

    free, some, twice = (steps(n) for n in (1, 200, 399))
    assert twice < some < free
    assert free - twice == pytest.approx(2 * (free - some), abs=2)
    with pytest.raises(InputError, match=r"the tokeniser of 'next_token' takes all the FLOPs.*fewer steps"):
        steps(10**6)
