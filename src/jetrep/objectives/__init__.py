"""Objectives: what a representation is trained for.

Each is an `Objective` (see `jetrep.objectives.base`): built from its own frozen configuration, an encoder and
`Features`, it turns a `JetBatch` into a loss, and hands out its parameters and, in the end, its encoder. A further
objective is one module here that implements it, and a line in `jetrep.objectives.build`; the training loop is the same.
"""

from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.monitors import alarms
from jetrep.objectives.self_distillation import PRESETS, SelfDistillation, SelfDistillationConfig

__all__ = ["PRESETS", "Objective", "SelfDistillation", "SelfDistillationConfig", "StepOutput", "alarms"]
