"""The HLO reader on a module small enough to check by eye."""

import pytest

from blobjax.plan.hlo import array_bytes, parse
from blobjax.plan.memory import kept_for_backward, traffic

NESTED = """HloModule jit_f, is_scheduled=true

%inner_body (p.1: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %x.1 = f32[4,8]{1,0} get-tuple-element(%p.1), index=1
  %y.1 = f32[4,8]{1,0} add(%x.1, %x.1)
  ROOT %t.1 = (s32[], f32[4,8]{1,0}) tuple(%i.1, %y.1)
}

%fused_compare (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %c.1 = pred[] compare(%a, %b), direction=LT
}

%inner_condition (p.2: (s32[], f32[4,8])) -> pred[] {
  %p.2 = (s32[], f32[4,8]{1,0}) parameter(0)
  %five = s32[] constant(5)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  ROOT %less = pred[] fusion(%i.2, %five), kind=kLoop, calls=%fused_compare
}

%outer_body (p.3: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.3 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %loop.1 = (s32[], f32[4,8]{1,0}) while(%p.3), condition=%inner_condition, body=%inner_body
}

%outer_condition (p.4: (s32[], f32[4,8])) -> pred[] {
  %p.4 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %loop.2 = (s32[], f32[4,8]{1,0}) while(%x), condition=%outer_condition, body=%outer_body, OUTER
}
"""


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[4,8]{1,0}", 128),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("(f32[2], /*index=1*/s8[3], (pred[4]))", 15),
        ("f32[]", 4),
        ("f8e4m3fn[16]", 16),
        ("s4[16]", 8),
        ("token[]", 0),
        ("f32[<=16]", 64),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert array_bytes(shape) == size


def test_loops_multiply():
    module = parse(NESTED.replace("OUTER", 'backend_config={"known_trip_count":{"n":"3"}}'))
    assert module.entry == "main"
    assert module.runs["outer_body"] == 3
    assert module.runs["inner_body"] == 15  # its bound is a constant handed into a fusion
    # Two operands and a result of 128 bytes, 15 times.
    assert traffic(module) == 15 * 3 * 128
    assert module.unknown_loops == []


def test_a_loop_of_unknown_length_is_named():
    module = parse(NESTED.replace("OUTER", "metadata={}"))
    assert module.runs["inner_body"] == 5
    assert module.unknown_loops == ["loop.2"]


def test_an_instruction_over_several_lines_ends_nothing():
    attributes = 'attributes={metadata={\n"blocks":"{128}"\n}}, metadata={op_name="k"}'
    kernel = f"%y.1 = f32[4,8]{{1,0}} custom-call(%x.1, %x.1), {attributes}"
    module = parse(NESTED.replace("%y.1 = f32[4,8]{1,0} add(%x.1, %x.1)", kernel))
    body = module.computations["inner_body"]
    assert [each.opcode for each in body.instructions][-2:] == ["custom-call", "tuple"]
    assert body.by_name["y.1"].op_name == "k"


SLICED = """HloModule jit_f, is_scheduled=true

%fused (w: f32[10,4], i: s32[], out: f32[10,4]) -> f32[10,4] {
  %w = f32[10,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %out = f32[10,4]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %one = f32[1,4]{1,0} dynamic-slice(%w, %i, %zero), dynamic_slice_sizes={1,4}
  ROOT %updated = f32[10,4]{1,0} dynamic-update-slice(%out, %one, %i, %zero)
}

ENTRY %main (a: f32[10,4], b: s32[], c: f32[10,4]) -> f32[10,4] {
  %a = f32[10,4]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[10,4]{1,0} parameter(2)
  ROOT %f = f32[10,4]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused
}
"""


def test_a_slice_is_not_the_whole_stack():
    """One row of 16 bytes is read, one written, and the index read: not the 160 bytes of each stack."""
    assert traffic(parse(SLICED)) == 16 + 16 + 4


def test_what_does_not_live_in_device_memory_is_no_traffic():
    vector_memory = SLICED.replace("%a = f32[10,4]{1,0}", "%a = f32[10,4]{1,0:T(8,128)S(1)}")
    assert traffic(parse(vector_memory)) == 16 + 4


KEPT = """HloModule jit_f, is_scheduled=true

%body (p: (f32[2], f32[3,2])) -> (f32[2], f32[3,2]) {
  %p = (f32[2]{0}, f32[3,2]{1,0}) parameter(0)
  %w = f32[2]{0} get-tuple-element(%p), index=0
  %s = f32[3,2]{1,0} get-tuple-element(%p), index=1
  %d = f32[3,2]{1,0} negate(%s)
  ROOT %t = (f32[2]{0}, f32[3,2]{1,0}) tuple(%w, %d)
}

%condition (q: (f32[2], f32[3,2])) -> pred[] {
  %q = (f32[2]{0}, f32[3,2]{1,0}) parameter(0)
  ROOT %r = pred[] constant(false)
}

ENTRY %main (w0: f32[2], s0: f32[3,2]) -> f32[3,2] {
  %w0 = f32[2]{0} parameter(0)
  %s0 = f32[3,2]{1,0} parameter(1)
  %in = (f32[2]{0}, f32[3,2]{1,0}) tuple(%w0, %s0)
  %fwd = (f32[2]{0}, f32[3,2]{1,0}) while(%in), condition=%condition, body=%body, metadata={op_name="jvp()/while"}
  %weights = f32[2]{0} get-tuple-element(%fwd), index=0
  %saved = f32[3,2]{1,0} get-tuple-element(%fwd), index=1
  %view = f32[3,2]{1,0} bitcast(%saved)
  %spent = f32[3,2]{1,0} negate(%saved), metadata={op_name="jit(f)/jvp()/neg"}
  ROOT %backward = f32[3,2]{1,0} custom-call(%view, %saved, %weights), metadata={op_name="jit(f)/transpose(jvp())/mul"}
}
"""


def test_kept_is_what_the_backward_pass_reads_of_what_the_forward_pass_made():
    """24 bytes, once: not what only the forward pass reads, and not the weights that the loop hands through."""
    assert kept_for_backward(parse(KEPT)) == 24


ALONE = """HloModule jit_f, is_scheduled=true

%sliced (w: f32[64]) -> f32[8] {
  %w = f32[64]{0} parameter(0)
  ROOT %part = f32[8]{0} slice(%w), slice={[0:8]}
}

ENTRY %main (x: f32[32], y: f32[64]) -> f32[8] {
  %x = f32[32]{0} parameter(0)
  %y = f32[64]{0} parameter(1)
  INSTRUCTIONS
}
"""
GATHERED = "%g = f32[512]{0} all-gather(%x), dimensions={0}"
GATHERED_BESIDE = """%s = (f32[32]{0}, f32[512]{0}) all-gather-start(%x), dimensions={0}
  %g = f32[512]{0} all-gather-done(%s)"""
REDUCED = "%r = f32[32]{0} all-reduce(%x), to_apply=%sum"
REDUCED_BESIDE = """%s = f32[32]{0} all-reduce-start(%x), to_apply=%sum
  %r = f32[32]{0} all-reduce-done(%s)"""
SLICED_ALONE = "%p = f32[8]{0} slice(%y), slice={[0:8]}"
SLICED_BESIDE = """%s = ((f32[64]{0}), f32[8]{0}, s32[]) slice-start(%y), slice={[0:8]}
  %p = f32[8]{0} slice-done(%s)"""
SLICED_WRAPPED = """%s = ((f32[64]{0}), f32[8]{0}, s32[]) async-start(%y), calls=%sliced
  %u = ((f32[64]{0}), f32[8]{0}, s32[]) async-update(%s)
  %p = f32[8]{0} async-done(%u)"""
COPIED = "%c = f32[64]{0:T(128)S(1)} copy(%y)"
COPIED_BESIDE = """%s = (f32[64]{0:T(128)S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%y)
  %c = f32[64]{0:T(128)S(1)} copy-done(%s)"""


@pytest.mark.parametrize(
    ("instructions", "moved"),
    [
        (GATHERED, 128 + 16 * 128),
        (GATHERED_BESIDE, 128 + 16 * 128),
        (REDUCED, 2 * 128),
        (REDUCED_BESIDE, 2 * 128),
        (SLICED_ALONE, 2 * 32),
        (SLICED_BESIDE, 2 * 32),
        (SLICED_WRAPPED, 2 * 32),
        (COPIED, 256),  # into vector memory: read, and written to no device memory
        (COPIED_BESIDE, 256),
    ],
)
def test_what_runs_beside_others_moves_what_it_moves_alone(instructions, moved):
    assert traffic(parse(ALONE.replace("INSTRUCTIONS", instructions))) == moved
