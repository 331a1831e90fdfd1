"""Names of machines; and real compilations for TPUs and GPUs that are not here, where their compilers are installed."""

import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest

from blobjax.compute.accelerators import find
from blobjax.conditioning.precision import POLICIES
from blobjax.conditioning.products import Product
from blobjax.config import BadInputError
from blobjax.plan import hardware
from blobjax.plan.compile import TooLargeError, _needed, _notes, _reduction, compile_step, program_for
from blobjax.plan.hardware import find_machine
from blobjax.plan.hlo import Module
from blobjax.training.memory import memory_bytes
from tests.tiny import tiny

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'blobjax[plan-tpu]'")
needs_cuda = pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None, reason="needs the CUDA plugin: pip install 'blobjax[plan-gpu]'"
)
# Kernels of accelerators want whole tiles.
TILES = (
    "model={vocab_size: 256, n_layers: 2, d_model: 128, n_heads: 1, d_ff: 256, activation: swiglu, max_seq_len: 128}",
    "data.seq_len=128",
    "conditioning.precision=bfloat16",
)


@pytest.fixture(scope="module")
def started():
    """jax, which has no more devices once it has started."""
    return jax.devices()


@pytest.mark.parametrize(
    ("name", "slices", "part"),
    [
        ("v5q:4x4", 1, "did you mean 'v5p'?"),
        ("v5e", 1, "not of the form CHIP:SIZES"),
        ("v5e:4y4", 1, "not of the form CHIP:SIZES"),
        ("v5e:0x4", 1, "not of the form CHIP:SIZES"),
        ("v5p:4x4", 1, "v5p takes 3 sizes, not 2"),
        ("cpu:2x2", 1, "cpu takes 1 sizes, not 2"),
        ("h100:999999x999999", 1, "more than any machine has"),
        ("h100:2x8", 2, "--slices 2: only TPUs have slices"),
        ("h100:1x16", 1, "a host of h100 has 8 GPUs, not 16"),
        ("cpu:4096", 1, "jax has started with"),
    ],
)
@pytest.mark.usefixtures("started")
def test_a_wrong_name_is_one_clear_line(name, slices, part):
    with pytest.raises(BadInputError) as error:
        find_machine(name, slices)
    (line,) = error.value.problems
    assert part in line


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "plan-tpu"), ("h100:1x8", "plan-gpu")])
def test_a_missing_compiler_names_its_extra(name, extra, monkeypatch):
    monkeypatch.setattr(hardware, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=rf"pip install 'blobjax\[{extra}\]'"):
        find_machine(name)


def test_cpus():
    machine = find_machine("cpu:4")
    assert (machine.platform, machine.chips, machine.chip) == ("cpu", 4, None)


def test_every_chip_is_in_the_table():
    assert all(find(gpu.kind) for gpu in hardware._GPUS.values())
    assert all(find(kind).torus_dims in (2, 3) for kind in hardware._TPUS.values())


def test_epochs_are_refused():
    config = tiny("duration.length='2 epochs'", "duration.warmup='1 epoch'")
    with pytest.raises(BadInputError) as error:
        compile_step(config, find_machine("cpu:8"))
    assert [line.split()[0] for line in error.value.problems] == ["duration.length", "duration.warmup"]


def test_activations_grow_with_layers_by_what_remat_keeps():
    """One float32 input of a layer more: 16 / 8 sequences of 32 tokens of width 32."""
    two, three = (
        compile_step(
            tiny(f"model.n_layers={n}", "compute={mesh: {data: 8}, remat: full, scan_layers: true}"),
            find_machine("cpu:8"),
        ).memory.activations
        for n in (2, 3)
    )
    assert three - two == 4 * (16 // 8) * 32 * 32


def test_state_is_counted_as_it_is_sharded():
    """A fraction of the state on each device, and the compiler's arguments are it and the batch."""
    whole, split = (
        compile_step(tiny(f"compute.mesh={mesh}"), find_machine("cpu:8")).memory for mesh in ("{data: 8}", "{fsdp: 8}")
    )
    # The same words and numbers as in the `compile` event of a run.
    program = program_for(tiny("compute.mesh={fsdp: 8}"), find_machine("cpu:8"))
    said = memory_bytes(program.lower_train_step().compile())
    assert said == {"arguments": split.arguments, "temporaries": split.temporaries}
    assert 0 < split.activations < split.temporaries
    assert split.total == split.arguments + split.temporaries + split.outputs
    # 28,864 parameters; fsdp splits all but the norms.
    assert whole.parameters == 4 * 28864
    assert split.parameters == 4 * ((28864 - 192) // 8 + 192)
    batch = 6 * 4 * (16 // 8) * 32
    for memory in (whole, split):
        assert memory.arguments == memory.parameters + memory.optimizer + batch + 4  # the step
        assert 0 <= memory.optimizer - 2 * memory.parameters < 64  # two moments and counts


def test_what_is_not_reckoned_is_noted():
    nothing, machine = Module({}, ""), find_machine("cpu:8")
    assert _notes(nothing, tiny("compute.remat=full"), machine, "xla", 0) == ()
    (note,) = _notes(nothing, tiny("compute.remat=offload"), machine, "xla", 0)
    assert "no time is reckoned" in note


def halved_by_product(config, path: str) -> bool:
    """Whether w's gradient leaves its product in 16 bits, before it is cast to the format of w."""
    product = Product(config, path)
    x, w, g = jnp.ones((2, 8), product.policy.compute), jnp.ones((8, 4)), jnp.ones((2, 4), product.policy.compute)
    traced = str(jax.make_jaxpr(lambda x, w, g: jax.vjp(lambda x, w: product(x, w), x, w)[1](g)[1])(x, w, g))
    return re.search(r":b?f16\[(8,4|4,8)\] = dot_general", traced) is not None


@pytest.mark.parametrize("precision", POLICIES)
@pytest.mark.parametrize("reduction", ["float32", "compute"])
def test_the_format_of_the_sums_of_gradients_is_that_of_the_products(precision, reduction):
    overrides = [f"conditioning.precision={precision}", f"compute.gradient_reduction={reduction}"]
    if POLICIES[precision].matmul and precision != "int8":
        overrides.append("conditioning.simulate=true")
    config = tiny(*overrides)
    found = jnp.dtype(_reduction(config))
    assert (found.itemsize == 2) == halved_by_product(config, "blocks/attention/out")
    notes = _notes(Module({}, ""), config, find_machine("cpu:8"), "xla", 1e6)
    said = any("gradient_reduction=compute would send about half" in note for note in notes)
    # Said where asking for it would change something.
    asked = jnp.dtype(_reduction(tiny(*overrides, "compute.gradient_reduction=compute")))
    assert said == (asked.itemsize < found.itemsize)


@pytest.mark.parametrize(
    ("precision", "overrides", "formats"),
    [
        ("bfloat16", "{blocks/mlp/*: float32}", {"bfloat16", "float32"}),
        ("bfloat16", "{'*': float32}", {"float32"}),
        ("float32", "{'*': bfloat16}", {"bfloat16"}),
        ("bfloat16", "{blocks/attention/*: mxfp8}", {"bfloat16", "float32"}),
    ],
)
def test_the_format_of_the_sums_follows_precisions_of_single_products(precision, overrides, formats):
    simulate = "conditioning.simulate=true" if "mx" in overrides else "seed=0"
    mixed = (f"conditioning.precision={precision}", f"conditioning.precision_overrides={overrides}", simulate)
    config = tiny(*mixed, "compute.gradient_reduction=compute")
    halved = {halved_by_product(config, path) for path in config.model.products}
    assert {jnp.dtype(name).itemsize == 2 for name in formats} == halved
    assert set(_reduction(config).split(" and ")) == formats
    notes = _notes(Module({}, ""), tiny(*mixed), find_machine("cpu:8"), "xla", 1e6)
    # Said where asking for it would change something, for all gradients or for some.
    said = [note for note in notes if "gradient_reduction=compute would send" in note]
    assert bool(said) == ("bfloat16" in formats)
    assert all(("about half" in note) == (formats == {"bfloat16"}) for note in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm.", "20.1GiB of 15.75GiB"),
        ("memory required for HLO temporaries (16.57G) exceeds available HBM (15.75G).", "16.57GiB of 15.75GiB"),
        ("Out of memory.", "the compiler ran out of it"),
    ],
)
def test_how_much_too_large(text, said):
    assert _needed(text) == said


@needs_libtpu
def test_a_step_too_large_for_the_compiler():
    config = tiny(*TILES, "model.n_layers=2000", "compute={mesh: {data: 4}, remat: none}", "model.d_ff=16384")
    with pytest.raises(TooLargeError, match=r"GiB of 15.75GiB"):
        compile_step(config, find_machine("v5e:2x2"))


@needs_libtpu
def test_a_tpu_slice_that_is_not_here():
    machine = find_machine("v5e:2x4")
    assert (machine.platform, machine.chips, machine.chip.name) == ("tpu", 8, "TPU v5e")
    step = compile_step(tiny(*TILES, "compute={mesh: {fsdp: 8}, remat: full}"), machine)
    assert step.attention == "splash"
    assert step.memory.capacity == 16 * 2**30
    assert 1.2 < step.hardware_flops / step.model_flops < 1.6
    # Scanned, and so counted layer by layer: forward and backward, of 128 x (4 x 128 + 3 x 256) bfloat16 weights.
    gathered = sum(each.payload for each in step.collectives if each.kind == "all-gather")
    assert gathered > 2 * 2 * 2 * 128 * (4 * 128 + 3 * 256)
    assert step.notes == ()


@needs_libtpu
def test_several_slices_and_a_single_chip():
    machine = find_machine("v5e:2x2", slices=2)
    assert (machine.chips, machine.slices) == (8, 2)
    step = compile_step(tiny(*TILES, "compute.mesh={replica: 2, fsdp: 4}"), machine)
    # Gradients: of layers in bfloat16 and of the head in float32 each device has a quarter of its slice's sum; of the
    # look-up, which is summed over all at once, the whole, in bfloat16. Norms are a few kilobytes.
    layers, table = 2 * 128 * (4 * 128 + 3 * 256), 256 * 128
    expected = 2 * layers / 4 + 4 * table / 4 + 2 * table
    (between,) = (each for each in step.collectives if each.axes == ("replica",))
    assert between.kind == "all-reduce"
    assert expected <= between.payload < expected + 8192
    assert find_machine("v5e:1x1").chips == 1
    # Two devices a chip.
    assert find_machine("tpu7x:2x2x1").chips == 4


@needs_libtpu
def test_a_topology_that_libtpu_refuses():
    with pytest.raises(BadInputError, match="libtpu does not take it"):
        find_machine("v5e:3x5")


@needs_cuda
def test_gpus_that_are_not_here():
    machine = find_machine("h100:2x4")
    assert (machine.platform, machine.chips, machine.chip.name) == ("gpu", 8, "H100 SXM")
    step = compile_step(tiny(*TILES, "compute={mesh: {data: 2, fsdp: 4}, remat: full}"), machine)
    assert step.attention == "cudnn"
    assert {each.kind for each in step.collectives} >= {"all-gather", "reduce-scatter"}
    assert [note.split()[1] for note in step.notes] == ["cuDNN's"]
