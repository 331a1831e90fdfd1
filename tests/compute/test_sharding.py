import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from blobjax.compute.sharding import (
    DEFAULT_RULES,
    LOGICAL_AXES,
    Layout,
    check_batch,
    constrain,
    current_layout,
    make_layout,
    unsharded,
    use,
)
from blobjax.config import BadInputError, load


def layout_of(*overrides: str) -> Layout:
    return make_layout(load("laptop", ["duration.global_batch_size=16", *overrides]))


@pytest.fixture(scope="module")
def cube():
    return layout_of("compute.mesh={data: 2, fsdp: 2, tensor: 2}")


@pytest.mark.parametrize(
    ("axes", "shape", "spec"),
    [
        (("batch", "time", "embed"), None, P(("data", "fsdp"), None, None)),  # fsdp is the batch's; embed stays whole
        (("embed", "mlp"), None, P("fsdp", "tensor")),
        (("layers", "embed", "heads", "head"), None, P(None, "fsdp", "tensor", None)),
        (("vocab", "embed"), None, P("tensor", "fsdp")),
        ((None, "embed"), None, P(None, "fsdp")),
        (("embed", "embed"), None, P("fsdp", None)),  # an axis serves one dim
        (("embed", "mlp"), (255, 704), P(None, "tensor")),  # 255 does not divide by 2
        (("batch", "time"), (3, 8), P(None, None)),
        ((), None, P()),
    ],
)
def test_the_first_usable_rule_wins(cube, axes, shape, spec):
    assert cube.spec(axes, shape) == spec


def test_axes_of_size_one_are_left_out():
    layout = layout_of("compute.mesh.fsdp=-1")
    assert layout.spec(("batch", "time", "embed")) == P("fsdp", None, None)
    assert layout.spec(("embed", "mlp")) == P("fsdp", None)


def test_the_sequence_goes_over_context():
    layout = layout_of("compute.mesh={context: 2, fsdp: 4}")
    assert layout.spec(("batch", "time", "heads", "head")) == P("fsdp", "context", None, None)
    assert (layout.ways("batch"), layout.ways("time"), layout.ways("heads")) == (4, 2, 1)


def test_given_rules_go_before_the_built_in_ones():
    layout = layout_of(
        "compute.mesh={data: 2, fsdp: 2, tensor: 2}",
        "compute.sharding_rules=[[embed, [fsdp, tensor]], [mlp, null], [vocab, fsdp]]",
    )
    assert layout.spec(("embed", "mlp")) == P(("fsdp", "tensor"), None)
    assert layout.spec(("vocab", "embed")) == P("fsdp", None)  # no further rule for embed is usable
    assert layout.rules[3:] == DEFAULT_RULES


def test_a_rule_that_does_not_divide_gives_way_to_the_next():
    layout = layout_of(
        "compute.mesh={data: 1, fsdp: 2, tensor: 4}", "compute.sharding_rules=[[kv_heads, tensor], [kv_heads, fsdp]]"
    )
    assert layout.spec(("kv_heads",), (8,)) == P("tensor")
    assert layout.spec(("kv_heads",), (2,)) == P("fsdp")
    assert layout.spec(("kv_heads",), (1,)) == P(None)


def test_every_default_rule_names_known_axes():
    assert {logical for logical, _ in DEFAULT_RULES} <= set(LOGICAL_AXES)


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ("[[embd, fsdp]]", "compute.sharding_rules: unknown logical axis 'embd'; did you mean 'embed'?"),
        ("[[embed, fdsp]]", "compute.sharding_rules: unknown mesh axis 'fdsp'; did you mean 'fsdp'?"),
        (
            "[[embed, [fsdp, xyz]]]",
            "compute.sharding_rules: unknown mesh axis 'xyz'; known: replica, data, fsdp, tensor, context",
        ),
    ],
)
def test_unknown_axes_are_named_with_the_nearest(rules, line):
    with pytest.raises(BadInputError, match=f"^{re.escape(line)}$"):
        layout_of(f"compute.sharding_rules={rules}")


def test_all_wrong_rules_at_once():
    with pytest.raises(BadInputError) as caught:
        layout_of("compute.sharding_rules=[[embd, fsdp], [mlp, tensr]]")
    assert len(caught.value.problems) == 2


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(BadInputError, match=r"model.n_heads 4 does not divide over 8 devices \(4 / 8 = 0.50\)"):
        layout_of("compute.mesh.tensor=-1")


def test_a_batch_that_does_not_divide_says_the_arithmetic(cube):
    line = (
        "duration.global_batch_size 10 does not divide over 4 devices (data 2 x fsdp 2): 10 / 4 = 2.50; "
        "the next that does is 12"
    )
    with pytest.raises(BadInputError, match=f"^{re.escape(line)}$"):
        check_batch(load("laptop", ["duration.global_batch_size=10"]), cube)


def test_so_does_one_in_parts(cube):
    config = load("laptop", ["duration.global_batch_size=12", "compute.gradient_accumulation=2"])
    with pytest.raises(BadInputError, match=r"in each of compute.gradient_accumulation 2 parts: 12 / 8 = 1.50.*is 16"):
        check_batch(config, cube)


def test_the_first_batch_of_a_warmup_must_divide_too(cube):
    warmup = "duration={global_batch_size: 16, batch_warmup: 9 steps, batch_start: 2}"
    line = "duration.batch_start 2 does not divide over 4 devices (data 2 x fsdp 2): 2 / 4 = 0.50; start with 4"
    with pytest.raises(BadInputError, match=f"^{re.escape(line)}$"):
        check_batch(load("laptop", [warmup]), cube)
    parts = "compute.gradient_accumulation=4"
    with pytest.raises(BadInputError, match=r"batch_start 4 .* 4 / 16 = 0.25; set duration.batch_warmup='0 steps'$"):
        check_batch(load("laptop", [warmup.replace("start: 2", "start: 4"), parts]), cube)


def test_a_sequence_that_does_not_divide_says_the_arithmetic():
    config = load("laptop", ["compute.mesh={context: 8}", "data.seq_len=100"])
    with pytest.raises(BadInputError, match=r"data.seq_len 100 .* compute.mesh.context 8: 100 / 8 = 12.50"):
        check_batch(config, make_layout(config))


def test_a_batch_that_fits(cube):
    check_batch(load("laptop"), cube)


PARAMETERS = {
    "whole": ((2048, 2048), (None, None)),
    "small": ((16, 16), (None, None)),
    "odd": ((2049, 2049), ("embed", "mlp")),
    "split": ((2048, 2048), ("embed", "mlp")),
    "split in one dim": ((2049, 2048), ("embed", "mlp")),
}


def test_large_parameters_left_whole_are_named(cube):
    assert unsharded(cube, PARAMETERS) == ["whole", "odd"]
    assert unsharded(cube, PARAMETERS, threshold=256) == ["whole", "small", "odd"]


def test_on_a_mesh_that_only_splits_data_nothing_is_named():
    assert unsharded(layout_of("compute.mesh.data=-1"), PARAMETERS) == []


def test_constrain_does_nothing_without_a_layout_or_on_one_device():
    x = jnp.ones((4, 8))
    assert constrain(x, ("batch", "embed")) is x
    with use(make_layout(load("laptop"), jax.devices()[:1])):
        assert constrain(x, ("batch", "embed")) is x
    assert current_layout() is None


def test_constrain_lays_out_what_is_computed(cube):
    @jax.jit
    def double(x):
        return constrain(2 * x, ("batch", "time", "mlp"))

    with use(cube):
        y = double(jnp.ones((4, 8, 16)))
    assert y.sharding.spec == P(("data", "fsdp"), None, "tensor")


def test_a_function_traced_under_one_layout_is_traced_anew_under_another(cube):
    """A jitted function's trace is cached; without the mesh in the cache's key it would keep the first layout."""

    @jax.jit
    def double(x):
        return constrain(2 * x, ("batch", "mlp"))

    x = jnp.ones((8, 16))
    for layout, spec in ((cube, P(("data", "fsdp"), "tensor")), (layout_of("compute.mesh.fsdp=-1"), P("fsdp"))):
        with use(layout):
            assert double(x).sharding.is_equivalent_to(jax.NamedSharding(layout.mesh, spec), 2)
