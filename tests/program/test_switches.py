"""Every switch of conditioning changes the step, and at its default changes nothing: read off the lowered program.

Two configs whose lowered text is the same compile to the same program, and so to the same bits.
"""

import jax
import pytest

from blobjax.compute.sharding import make_layout
from blobjax.program.program import make_program
from tests.tiny import tiny

# A switch: what turns it on, and what it needs besides.
SWITCHES = {
    "bfloat16": ("conditioning.precision=bfloat16",),
    "gradient reduction": ("compute.gradient_reduction=compute", "conditioning.precision=bfloat16"),
    "bfloat16_params": ("conditioning.precision=bfloat16_params",),
    "stochastic rounding": ("conditioning.parameter_rounding=stochastic", "conditioning.precision=bfloat16_params"),
    "kahan": ("conditioning.parameter_rounding=kahan", "conditioning.precision=bfloat16_params"),
    "layernorm": ("conditioning.norm=layernorm",),
    "dyt": ("conditioning.norm=dyt",),
    "post": ("conditioning.norm_placement=post",),
    "sandwich": ("conditioning.norm_placement=sandwich",),
    "peri": ("conditioning.norm_placement=peri",),
    "no norms": ("conditioning.norm_placement=none",),
    "embedding norm": ("conditioning.embedding_norm=true",),
    "no qk norm": ("conditioning.qk_norm=false",),
    "attention soft cap": ("conditioning.attention_soft_cap=50",),
    "final soft cap": ("conditioning.final_soft_cap=30",),
    "float32 head": ("conditioning.float32_head=true", "conditioning.precision=bfloat16"),
    "z-loss": ("conditioning.z_loss=0.01",),
    "zclip": ("conditioning.clip=zclip",),
    "adagc": ("conditioning.clip=adagc",),
    "no clipping": ("conditioning.clip_norm=0",),
    "probes": ("conditioning.probe_every=10",),
    "probed format": ("conditioning.probe_format=mxfp4", "conditioning.probe_every=10"),
    "guard": ("conditioning.guard={}",),
    "StableAdamW": ("optimizer.update_clipping=true",),
    "independent decay": ("optimizer.weight_decay_mode=independent",),
    "beta2": ("optimizer.beta2=0.99",),
    "epsilon": ("optimizer.epsilon=1e-6",),
    "float16": ("conditioning.precision=float16",),
    "static loss scaling": ("conditioning.loss_scaling.kind=static", "conditioning.precision=float16"),
    "dynamic loss scaling": ("conditioning.loss_scaling.kind=dynamic", "conditioning.precision=float16"),
    "loss multiplier": ("conditioning.loss_multiplier=0.01",),
    "int8": ("conditioning.precision=int8",),
    "simulated int8": ("conditioning.simulate=true", "conditioning.precision=int8"),
    "int8 in blocks": ("conditioning.matmul_scaling=blocks", "conditioning.precision=int8"),
    **{
        name: (f"conditioning={{precision: {name}, simulate: true}}", "model.n_layers=1")
        for name in ("fp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4")
    },
    "scales rounded down": (
        "conditioning.scale_rounding=floor",
        "conditioning.precision=mxfp8",
        "conditioning.simulate=true",
    ),
    "precision overrides": ("conditioning.precision_overrides={blocks/mlp/*: bfloat16}",),
    "mup": ("conditioning.parametrisation={kind: mup, base_width: 16}",),
    "completep": ("conditioning.parametrisation={kind: completep, base_width: 32, base_depth: 2}",),
    "agc": ("conditioning.clip=agc",),
    "qk-clip": ("conditioning.qk_clip=100", "conditioning.probe_every=1", "conditioning.qk_norm=false"),
    "sequence warm-up": ("duration={seq_len_warmup: 4 steps, seq_len_start: 8}",),
    "sustained spikes": ("conditioning.guard.rollback={}", "conditioning.guard.sigmas=6"),
}


def lowered(*overrides: str) -> str:
    settings = tiny("model.n_layers=1", *overrides)
    return make_program(settings, make_layout(settings, jax.devices()[:1]), 100_000).lower_train_step().as_text()


@pytest.fixture(scope="module")
def without():
    """The step without a switch, by what the switch needs besides."""
    texts: dict[tuple[str, ...], str] = {}
    return lambda needs: texts.setdefault(needs, lowered(*needs)) if needs not in texts else texts[needs]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_the_step(name, without):
    switch, *needs = SWITCHES[name]
    assert lowered(switch, *needs) != without(tuple(needs))


def test_defaults_said_aloud_change_nothing(without):
    """Each switch's own default, given explicitly, with the sections of what is off filled with other numbers."""
    said = (
        # In float32 there is nothing else to reduce in.
        "compute.gradient_reduction=compute",
        "conditioning.parameter_rounding=nearest",
        "conditioning.norm_placement=pre",
        "conditioning.embedding_norm=false",
        "conditioning.attention_soft_cap=0",
        "conditioning.final_soft_cap=0",
        "conditioning.float32_head=false",
        "conditioning.clip=global_norm",
        "conditioning.zclip={z_score: 3.0, warmup: 7}",
        "conditioning.adagc={ratio: 2.0, warmup: 7}",
        "conditioning.probe_every=0",
        "conditioning.probe_format=mxfp4",
        "conditioning.noise_scale_every=7",
        "conditioning.curvature_every=7",
        "conditioning.guard=null",
        "conditioning.loss_scaling={kind: none, initial: 2.0}",
        "conditioning.loss_multiplier=1.0",
        "conditioning.simulate=false",
        "conditioning.matmul_scaling=current",
        "conditioning.precision_overrides={}",
        "conditioning.parametrisation.kind=standard",
        "conditioning.agc={ratio: 0.5}",
        "conditioning.qk_clip=0",
        "duration.seq_len_warmup=0 steps",
        "duration.batch_warmup=0 steps",
        "faults={nan: [10, 20], poison: [20, 30]}",
        "optimizer.update_clipping=false",
        "optimizer.weight_decay_mode=coupled",
    )
    assert lowered(*said) == without(())
