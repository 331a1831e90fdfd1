"""Every wrong key or value is one line that says where it was given, what was expected, and what to write instead."""

import pytest

from blobjax.config import BadInputError, load


def problems(*overrides: str, name: str = "laptop") -> tuple[str, ...]:
    with pytest.raises(BadInputError) as caught:
        load(name, overrides)
    return caught.value.problems


SINGLE = {
    # unknown keys
    "model.n_layer=3": "override: model.n_layer: unknown key; did you mean 'model.n_layers'?",
    "modle.n_layers=3": "override: modle: unknown key; did you mean 'model'?",
    "n_layers=3": "override: n_layers: unknown key; did you mean 'model.n_layers'?",
    "model.seq_len=3": "override: model.seq_len: unknown key; did you mean 'data.seq_len'?",
    "batch_size=3": "override: batch_size: unknown key; did you mean 'duration.global_batch_size'?",
    "data.sources.foo.pth=3": "override: data.sources.foo.pth: unknown key; did you mean 'data.sources.foo.path'?",
    "model.rope.scaling.factr=3": "override: model.rope.scaling.factr: unknown key; "
    "did you mean 'model.rope.scaling.factor'?",
    "every=3": "override: every: unknown key; did you mean 'checkpoint.every' or 'evaluation.every' or "
    "'logging.every'?",
    "objective.zzz=3": "override: objective.zzz: unknown key; known: kind",
    # wrong types
    "model.n_layers=abc": "override: model.n_layers: expected an integer, not 'abc'",
    "model.n_layers=2.5": "override: model.n_layers: expected an integer, not 2.5",
    "model.n_layers='12'": "override: model.n_layers: expected an integer, not '12'",
    "model.n_layers=true": "override: model.n_layers: expected an integer, not true",
    "model.n_layers=": "override: model.n_layers: expected an integer, not nothing (null)",
    "model.n_layers=[1]": "override: model.n_layers: expected an integer, not a list",
    "model=null": "override: model: expected keys and values, not nothing (null)",
    "model=[1]": "override: model: expected keys and values, not a list",
    "model.tie_embeddings=1": "override: model.tie_embeddings: expected true or false, not 1",
    "data={tokenizer: [1]}": "override: data.tokenizer: expected text, not a list",
    "compute.scan_layers=7": "override: compute.scan_layers: expected 'auto' or true or false, not 7",
    "compute.xla_flags=7": "override: compute.xla_flags: expected 'auto' or a list, not 7",
    "compute.sharding_rules=[[embed]]": "override: compute.sharding_rules.0: needs 2 or more items, not 1",
    "logging.profile_steps=[1, 2, 3]": "override: logging.profile_steps: expected at most 2 items, not a list",
    "data.mixture={null: 2}": "override data.mixture:1: not valid YAML: a key is nothing (null or ~); write its name, "
    "or quote the word: 'null'",
    "logging.wandb={}": "override: logging.wandb.project: required, and not given",
    # values out of range
    "model.d_model=0": "override: model.d_model: expected at least 1, not 0",
    "model.d_model=99999999999": "override: model.d_model: expected at most 2147483647, not 99999999999",
    "seed=-1": "override: seed: expected at least 0, not -1",
    "seed=4294967296": "override: seed: expected less than 4294967296, not 4294967296",
    "optimizer.learning_rate=.nan": "override: optimizer.learning_rate: expected a number, not '.nan'",
    "optimizer.learning_rate=1e999": "override: optimizer.learning_rate: expected a finite number, not inf",
    "data.mixture.bible=-1": "override: data.mixture.bible: expected at least 0.0, not -1",
    "compute.mesh.data=-2": "override: compute.mesh.data: expected at least -1, not -2",
    "conditioning.precision=bfloat61": "override: conditioning.precision: expected 'float32', 'bfloat16', 'int8', "
    "'fp8', 'mxfp8', 'mxfp6', 'mxfp4', 'nvfp4', 'bfloat16_params' or 'float16', not 'bfloat61'; did you mean "
    "'bfloat16'?",
    "name=a b": "override: name: expected letters, digits, '.', '_' and '-' only, a letter or digit first, not 'a b'",
    "duration.length=300": "override: duration.length: expected a duration such as '300 steps', '20M tokens', "
    "'2e15 flops', '20 tokens/param', '3 epochs', '5%' or '10 minutes', not 300",
    # what must hold between keys
    "model.n_heads=3": "configs/laptop.yaml, override: model.d_model 256 is not a multiple of model.n_heads 3 "
    "(256 / 3 = 85.33); change one, or give model.d_head",
    "model.n_kv_heads=3": "configs/laptop.yaml, override: model.n_heads 4 is not a multiple of model.n_kv_heads 3 "
    "(4 / 3 = 1.33)",
    "model.d_head=63": "override: model.d_head 63 is odd; rotary embeddings turn pairs of features, so make it even",
    "data.seq_len=2048": "override, configs/laptop.yaml: data.seq_len 2048 is longer than the 1024 tokens of "
    "model.max_seq_len that the rotary embeddings are set for; lower one or raise the other",
    "model.vocab_size=255": "override, configs/laptop.yaml: model.vocab_size 255 is smaller than the byte tokenizer's "
    "256 (data.tokenizer)",
    "conditioning.parameter_rounding=kahan": "override, configs/laptop.yaml: conditioning.parameter_rounding kahan is "
    "for parameters in bfloat16, and conditioning.precision float32 keeps them in float32; set "
    "conditioning.precision=bfloat16_params, or leave it at nearest",
    "conditioning.loss_scaling.kind=dynamic": "override, configs/laptop.yaml: conditioning.loss_scaling.kind dynamic "
    "brings gradients into float16's range, and those of conditioning.precision float32 have float32's; set "
    "conditioning.precision=float16, or conditioning.loss_scaling.kind=none",
    "conditioning={precision: float16, loss_scaling: {kind: dynamic, floor: 1.0e+6}}": "override: "
    "conditioning.loss_scaling.floor 1000000.0 is above conditioning.loss_scaling.initial 65536.0; lower one or raise "
    "the other",
    "conditioning.precision=mxfp6": "override: conditioning.precision mxfp6 exists in simulation only; set "
    "conditioning.simulate=true",
    "conditioning.simulate=true": "override, configs/laptop.yaml: conditioning.simulate is for products in int8, fp8, "
    "mxfp8, mxfp6, mxfp4, nvfp4, and conditioning.precision float32 has none; choose one of these or leave "
    "conditioning.simulate out",
    "conditioning.matmul_scaling=blocks": "override, configs/laptop.yaml: conditioning.matmul_scaling blocks is for "
    "products in int8, fp8, mxfp8, mxfp6, mxfp4, nvfp4, and conditioning.precision float32 has none; choose one of "
    "these or leave conditioning.matmul_scaling out",
    "conditioning={precision: nvfp4, simulate: true, matmul_scaling: blocks}": "override: conditioning.matmul_scaling "
    "blocks is for int8 and fp8, and nvfp4 has scales of its own; set conditioning.matmul_scaling=current",
    "conditioning.precision_overrides.blocks/mpl/*=int8": "override: conditioning.precision_overrides: 'blocks/mpl/*' "
    "matches no product with weights; there are blocks/attention/query, blocks/attention/key, blocks/attention/value, "
    "blocks/attention/out, blocks/mlp/up, blocks/mlp/down, output",
    "conditioning.precision_overrides={output: fp9}": "override: conditioning.precision_overrides.output: expected "
    "'float32', 'bfloat16', 'int8', 'fp8', 'mxfp8', 'mxfp6', 'mxfp4' or 'nvfp4', not 'fp9'; did you mean 'fp8'?",
    "conditioning={float32_head: true, precision_overrides: {output: int8}}": "override: conditioning.float32_head and "
    "conditioning.precision_overrides both name output; leave one",
    "compute.gradient_accumulation=5": "configs/laptop.yaml, override: duration.global_batch_size 8 does not divide "
    "into compute.gradient_accumulation 5 parts (8 / 5 = 1.60)",
    "conditioning={qk_clip: 100}": "override: conditioning.qk_clip 100 acts on attention logits that "
    "conditioning.probe_every 0 never measures; set conditioning.probe_every=1 to act at every step, as in the paper",
    "conditioning={qk_clip: 100, probe_every: 1, qk_norm: true}": "override: conditioning.qk_clip 100 scales query and "
    "key weights, which conditioning.qk_norm undoes; turn one of them off",
    "duration={global_batch_size: 8, batch_warmup: 5 steps, batch_start: 3}": "override: duration.batch_start 3 is not "
    "duration.global_batch_size 8 halved some times (8 / 3 = 2.67), and duration.batch_warmup doubles it; start with 1 "
    "or 2 or 4",
    "duration={global_batch_size: 8, batch_warmup: 5 steps, batch_start: 8}": "override: duration.batch_start 8 is not "
    "duration.global_batch_size 8 halved some times (8 / 8 = 1.00), and duration.batch_warmup doubles it; start with 1 "
    "or 2 or 4",
    "duration={global_batch_size: 9, batch_warmup: 5 steps}": "override: duration.batch_start 1 is not "
    "duration.global_batch_size 9 halved some times (9 / 1 = 9.00), and duration.batch_warmup doubles it; set "
    "duration.batch_warmup='0 steps'",
    "duration={batch_warmup: 5%, batch_start: 3}": "override: duration.batch_warmup cannot be a percentage of the "
    "steps in duration.length, which depend on it; give steps, tokens, flops, tokens/param or epochs",
    "duration={batch_warmup: 5 minutes, batch_start: 3}": "override: duration.batch_warmup '5 minutes' is wall-clock "
    "time; give steps, tokens, flops, tokens/param or epochs",
    "duration={seq_len_warmup: 5 steps, seq_len_start: 256}": "override, configs/laptop.yaml: duration.seq_len_start "
    "256 is not below data.seq_len 256, so there is nothing to warm up; lower it, or set duration.seq_len_warmup="
    "'0 steps'",
    "compute.mesh={data: -1, fsdp: -1}": "override: only one mesh axis may be -1 (the devices that are left), not "
    "compute.mesh.data and compute.mesh.fsdp",
    "compute.mesh.fsdp=0": "override: compute.mesh.fsdp is a positive number, or -1 for the devices that are left; "
    "not 0",
    "data.mixture={bible: 0}": "override: data.mixture has no domain with a positive weight",
    "duration.length=0 steps": "override: duration.length '0 steps' must be more than 0",
    "duration.length=2 hours": "override: duration.length '2 hours' is wall-clock time; give steps, tokens, flops, "
    "tokens/param or epochs",
    "duration.length=50%": "override: duration.length cannot be a percentage of itself; give steps, tokens, flops, "
    "tokens/param or epochs",
    "duration.warmup=101%": "override: duration.warmup '101%' is more than the whole run",
    "checkpoint.every=[]": "override: checkpoint.every: expected a duration such as '300 steps' or '10 minutes', or a "
    "list of such, not an empty list",
    "checkpoint.every=[3 steps, 0 minutes]": "override: checkpoint.every '0 minutes' must be more than 0",
    "checkpoint.stall_limit=30 steps": "override: checkpoint.stall_limit '30 steps' is not a time such as '10 minutes'",
    "checkpoint.write_limit=1%": "override: checkpoint.write_limit '1%' is not a time such as '10 minutes'",
    "checkpoint.keep_best={metric: eval/shakespear/bits_per_byte}": "override: checkpoint.keep_best.metric: "
    "'eval/shakespear/bits_per_byte' is none of what is evaluated; did you mean 'eval/shakespeare/bits_per_byte'?",
    "checkpoint.every=0 minutes": "override: checkpoint.every '0 minutes' must be more than 0",
    "evaluation.every=0%": "override: evaluation.every '0%' must be more than 0",
    "reliability.grace=3 steps": "override: reliability.grace '3 steps' is not a time such as '25 seconds'",
    "reliability.hang_limit=0 seconds": "override: reliability.hang_limit '0 seconds' "
    "is not a time such as '25 seconds'",
    "duration.wall_clock_limit=3 steps": "override: duration.wall_clock_limit '3 steps' "
    "is not a time such as '2 hours'",
    "logging.profile_steps=[5, 4]": "override: logging.profile_steps: the last step 4 must come after the first 5",
    "model.rope.scaling.high_freq_factor=1.0": "override: model.rope.scaling.high_freq_factor 1.0 must be larger than "
    "model.rope.scaling.low_freq_factor 1.0",
    # overrides that are none
    "foo": "override 'foo' is not of the form dotted.key=value, such as model.d_model=512",
    "a..b=1": "override 'a..b=1' is not of the form dotted.key=value, such as model.d_model=512",
    "model.d_model.x=3": "override model.d_model.x: model.d_model is a value, not a section",
    "seed=[1": "override seed:1: not valid YAML: expected ',' or ']', but got '<stream end>'",
}


@pytest.fixture
def in_repository(request, monkeypatch):
    """Shipped files are then told as configs/…"""
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(("override", "line"), SINGLE.items(), ids=SINGLE)
def test_one_line(override, line, in_repository):
    (problem,) = problems(override)
    assert problem == line


def test_the_first_batch_in_parts():
    lines = problems(
        "duration={global_batch_size: 8, batch_warmup: 5 steps, batch_start: 1}", "compute.gradient_accumulation=2"
    )
    assert lines == (
        "override: duration.batch_start 1 does not divide into compute.gradient_accumulation 2 parts (1 / 2 = 0.50); "
        "start with 2 or 4",
    )


def test_zero_warmup_and_decay_are_fine():
    config = load("laptop", ["duration.warmup=0 steps", "optimizer.decay=0%"])
    assert config.duration.warmup.amount == config.optimizer.decay.amount == 0


def test_percentages_and_times_where_they_mean_something():
    config = load("laptop", ["evaluation.every=25%", "checkpoint.every=10 minutes", "logging.every=1%"])
    assert (str(config.evaluation.every), config.checkpoint.every.parts[0].seconds) == ("25%", 600)


def test_all_problems_at_once_with_their_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("model: {n_heads: 3}\nconditioning: {precision: fp9}\n")
    (tmp_path / "top.yaml").write_text("include: base.yaml\nzzz: 1\nduration: {length: 0 steps}\n")
    assert problems("seed=x", "bar", "data.seq_len=4096", name="top.yaml") == (
        "override 'bar' is not of the form dotted.key=value, such as model.d_model=512",
        "override: seed: expected an integer, not 'x'",
        "base.yaml: conditioning.precision: expected 'float32', 'bfloat16', 'int8', 'fp8', 'mxfp8', 'mxfp6', 'mxfp4', "
        "'nvfp4', 'bfloat16_params' or 'float16'",
        "top.yaml: zzz: unknown key; known: name, seed, model, compute, data, duration, objective, conditioning, "
        "optimizer, checkpoint, reliability, evaluation, logging, faults",
        "base.yaml: model.d_model 256 is not a multiple of model.n_heads 3 (256 / 3 = 85.33); change one, or give "
        "model.d_head",
        "override: data.seq_len 4096 is longer than the 2048 tokens of model.max_seq_len that the rotary embeddings "
        "are set for; lower one or raise the other",
        "top.yaml: duration.length '0 steps' must be more than 0",
    )


def test_a_wrong_key_is_not_checked_against_others_with_its_default():
    """d_model's default of 256 would not divide by 3 heads; but nobody asked for 256."""
    assert problems("model.d_model=abc", "model.n_heads=3") == (
        "override: model.d_model: expected an integer, not 'abc'",
    )
