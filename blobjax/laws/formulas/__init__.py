"""The laws by name. Each file is one law, or a family of them, and reads like its paper."""

from blobjax.laws.formulas.chinchilla import CHINCHILLA_3, VARIABLE_PROJECTION
from blobjax.laws.formulas.critical_batch import CRITICAL_BATCH, CRITICAL_BATCH_LOSS, CRITICAL_BATCH_TOKENS
from blobjax.laws.formulas.data_constrained import DATA_CONSTRAINED
from blobjax.laws.formulas.envelope import CHINCHILLA_1
from blobjax.laws.formulas.isoflop import CHINCHILLA_2
from blobjax.laws.formulas.kaplan import KAPLAN
from blobjax.laws.formulas.law import Law, Settings
from blobjax.laws.formulas.over_training import OVER_TRAINING
from blobjax.laws.formulas.power import POWER_FLOPS, POWER_PARAMS, POWER_TOKENS
from blobjax.laws.formulas.precision import PRECISION, PRECISION_WEIGHTS
from blobjax.laws.formulas.rl_compute import LOG_LINEAR, RL_COMPUTE

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        POWER_FLOPS,
        POWER_PARAMS,
        POWER_TOKENS,
        KAPLAN,
        CHINCHILLA_1,
        CHINCHILLA_2,
        CHINCHILLA_3,
        VARIABLE_PROJECTION,
        DATA_CONSTRAINED,
        OVER_TRAINING,
        PRECISION,
        PRECISION_WEIGHTS,
        RL_COMPUTE,
        LOG_LINEAR,
        CRITICAL_BATCH,
        CRITICAL_BATCH_LOSS,
        CRITICAL_BATCH_TOKENS,
    )
}

__all__ = ["LAWS", "Law", "Settings"]
