"""Bytes: what a device holds during a step, and what it moves to and from its memory.

What the compiler allocates is its own word (`compiled.memory_analysis()`); what of it is parameters and optimizer state
follows from shapes and shardings; which of its temporaries are activations kept for the backward pass, from the HLO.
"""

import math
import re
from dataclasses import replace

from blobjax.plan.hlo import Computation, Instruction, Module, array_bytes

_NO_TRAFFIC = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "async-update",
        "opt-barrier",
        "partition-id",
        "replica-id",
        "iota",
    ]
)
# Gathered are weights, never what was computed of them.
_NOT_ACTIVATIONS = ("parameter", "constant", "while", "all-gather", "all-gather-done")
# A layout that ends in S(1), …: not in device memory, but in a TPU's vector memory or the host's.
_ELSEWHERE = re.compile(r"\b[a-z][a-z0-9]*\[[0-9,]*\]\{[^{}]*S\(\d+\)[^{}]*\}")


def kept_for_backward(module: Module) -> int:
    """Bytes that the forward pass leaves for the backward pass, as the compiler laid them out.

    Found by the names that jax gives to what it differentiates: `jvp(…)` forward, `transpose(jvp(…))` backward. Of a
    loop only what it makes counts, not what it hands through.
    """
    fused = {
        name
        for computation in module.computations.values()
        for instruction in computation.instructions
        if instruction.opcode == "fusion"
        for name in instruction.called.get("calls", [])
    }
    return max(_kept(module, each) for name, each in module.computations.items() if name not in fused)


def _is_backward(instruction: Instruction) -> bool:
    return "transpose(" in instruction.op_name


def _is_forward(instruction: Instruction) -> bool:
    return "jvp(" in instruction.op_name and not _is_backward(instruction)


def _kept(module: Module, computation: Computation) -> int:
    found: dict[tuple[str, int], int] = {}
    for instruction in computation.instructions:
        if _is_backward(instruction) and instruction.opcode != "get-tuple-element":
            for name in instruction.operands:
                _sources(module, computation, name, found)
    return sum(found.values())


def _sources(module: Module, computation: Computation, name: str, found: dict[tuple[str, int], int]) -> None:
    """Adds the forward values that a backward operand is, seen through tuples and casts of views."""
    source = computation.by_name.get(name)
    if source is None or (_is_backward(source) and source.opcode != "tuple"):
        return
    if source.opcode in ("tuple", "bitcast", "copy", "copy-done", "opt-barrier"):
        for operand in source.operands:
            _sources(module, computation, operand, found)
    elif source.opcode == "get-tuple-element":
        index = _index(source)
        maker = computation.by_name[source.operands[0]]
        if _is_forward(maker) and not (maker.opcode == "while" and _handed_through(module, maker, index)):
            found[(maker.name, index)] = _in_memory(source.shape)
    elif _is_forward(source) and source.opcode not in _NOT_ACTIVATIONS:
        found[(source.name, 0)] = _in_memory(source.shape)


def _handed_through(module: Module, loop: Instruction, index: int) -> bool:
    body = module.computations[loop.called["body"][0]]
    value = body.by_name.get(body.root.operands[index]) if body.root.opcode == "tuple" else None
    return value is not None and value.opcode == "get-tuple-element" and _index(value) == index


def _index(element: Instruction) -> int:
    """Of a get-tuple-element."""
    found = re.search(r"index=(\d+)", element.rest)
    assert found
    return int(found[1])


def _in_memory(shape: str) -> int:
    """Bytes of the arrays of a shape that live in device memory."""
    return array_bytes(_ELSEWHERE.sub("", shape))


def traffic(module: Module) -> float:
    """Bytes one device reads from and writes to its memory in one step, were every instruction to read its operands and
    write its result once. A fusion reads of an operand that it only slices no more than the slice."""
    return _traffic(module, module.entry)


def _traffic(module: Module, name: str) -> float:
    computation = module.computations[name]
    total = 0.0
    for instruction in computation.instructions:
        called = instruction.called
        if instruction.opcode == "while":
            total += module.trips(instruction) * sum(_traffic(module, body) for body in called["body"])
        elif instruction.opcode == "conditional":
            total += max((_traffic(module, branch) for branch in called.get("branches", [])), default=0)
        elif instruction.opcode == "call":
            total += sum(_traffic(module, each) for each in called.get("to_apply", []) + called.get("calls", []))
        elif instruction.opcode == "async-start":
            total += sum(_traffic(module, each) for each in called["calls"])
        elif instruction.opcode.endswith("-start"):
            total += _of_instruction(module, computation, _finished(computation, instruction))
        elif instruction.opcode not in _NO_TRAFFIC and not instruction.opcode.endswith("-done"):
            total += _of_instruction(module, computation, instruction)
    return total


def _finished(computation: Computation, start: Instruction) -> Instruction:
    """What an instruction that runs beside others does, as if it ran alone: `X-start` is an X, and has the shape of its
    `X-done`; its own is a tuple that also names its operands."""
    last = start
    for each in computation.instructions:
        if last.name in each.operands and each.opcode.endswith(("-update", "-done")):
            last = each
    return replace(start, opcode=start.opcode.removesuffix("-start"), shape=last.shape)


def _of_instruction(module: Module, computation: Computation, instruction: Instruction) -> float:
    def size(name: str) -> int:
        operand = computation.by_name.get(name)
        return 0 if operand is None else _in_memory(operand.shape)

    opcode = instruction.opcode
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_memory(instruction.shape)
    if opcode == "dynamic-update-slice":
        return 2 * size(instruction.operands[1])
    fused = module.computations.get(instruction.called.get("calls", [""])[0])
    if opcode != "fusion" or fused is None:
        return _in_memory(instruction.shape) + sum(size(name) for name in instruction.operands)
    updated = _updated_in_place(fused)
    written = _in_memory(instruction.shape)
    read = 0.0
    for number, name in enumerate(instruction.operands):
        parameter = next((p for p in fused.instructions if p.opcode == "parameter" and p.rest == str(number)), None)
        if parameter is None or not size(name):
            continue
        if parameter.name in updated:
            # In and out are one array, of which the update alone is written.
            written += updated[parameter.name] - size(name)
        else:
            read += min(_read_of(fused, parameter), size(name))
    return read + max(written, 0)


def _updated_in_place(fused: Computation) -> dict[str, int]:
    """Parameters of a fusion that it updates a slice of, and the bytes of that slice."""
    updates = (each for each in fused.instructions if each.opcode == "dynamic-update-slice")
    return {
        _through_views(fused, each.operands[0]): array_bytes(fused.by_name[each.operands[1]].shape)
        for each in updates
        if each.operands[0] in fused.by_name and each.operands[1] in fused.by_name
    }


def _through_views(fused: Computation, name: str) -> str:
    while (source := fused.by_name.get(name)) is not None and source.opcode in ("bitcast", "reshape"):
        name = source.operands[0]
    return name


def _read_of(fused: Computation, parameter: Instruction) -> float:
    """Bytes read of a fusion's parameter: slices where only slices are taken, all of it otherwise."""
    views = {parameter.name}
    read = 0.0
    for each in fused.instructions:
        if not views & set(each.operands):
            continue
        if each.opcode in ("bitcast", "reshape"):
            views.add(each.name)
        elif each.opcode in ("dynamic-slice", "slice", "gather") and each.operands[0] in views:
            read += each.bytes
        else:
            return math.inf
    return read
