"""Reads the text of an optimised HLO module: computations, instructions, and how often each of them runs.

XLA's own counts (`compiled.cost_analysis()`) see the body of a loop once, and say nothing of collectives, so a scanned
model has to be read. Only what a plan asks about is read: shapes, operands, called computations, metadata. The text is
what `compiled.as_text()` gives on CPUs, GPUs and TPUs; nothing in it is promised by XLA, so what is not understood is
named (`Module.unknown_loops`) instead of guessed.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CALLED_LIST = re.compile(r"\bcalled_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.\-]+)")


def array_bytes(text: str) -> int:
    """Bytes of all arrays that a shape names, `bf16[8,128]{1,0}` or a tuple; padding of tiles is not counted."""
    return sum(_width(dtype) * _elements(dims) // 8 for dtype, dims in _ARRAY.findall(text))


def _width(dtype: str) -> int:
    """Bits of an element; `f8e4m3fn` has 8, as every name says in its first number."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0


def _elements(dims: str) -> int:
    return math.prod(int(size.lstrip("<=")) for size in dims.split(",") if size)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in the module.
      shape: of the result, as written.
      opcode: such as `all-gather`.
      operands: names of the instructions it reads.
      rest: all after the operands: attributes, metadata, backend config.
      root: whether it is the computation's result.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @functools.cached_property
    def bytes(self) -> int:
        """Of the result."""
        return array_bytes(self.shape)

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """Computations it runs, by role; `calls`, `body`, `condition`, `to_apply`, `branches`."""
        roles: dict[str, list[str]] = {}
        for role, name in _CALLED.findall(self.rest):
            roles.setdefault("branches" if role.endswith("_computation") else role, []).append(name)
        for pattern, role in ((_BRANCHES, "branches"), (_CALLED_LIST, "calls")):
            if found := pattern.search(self.rest):
                roles.setdefault(role, []).extend(name.strip().lstrip("%") for name in found[1].split(","))
        return roles

    @functools.cached_property
    def op_name(self) -> str:
        """Where in the traced program it is from, such as `jit(train_step)/jvp()/while/body/dot_general`."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclass
class Computation:
    """A list of instructions in the order they are scheduled (where the module says `is_scheduled=true`)."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next((each for each in self.instructions if each.root), self.instructions[-1])


@dataclass
class Module:
    """A whole program.

    Attributes:
      computations: by name.
      entry: name of the one that runs.
      unknown_loops: names of loops whose number of turns was not found; they are counted as one turn.
    """

    computations: dict[str, Computation]
    entry: str
    unknown_loops: list[str] = field(default_factory=list)

    @functools.cached_property
    def runs(self) -> dict[str, float]:
        """How often each computation runs in one run of the module; of the branches of a condition each once."""
        counts: dict[str, float] = dict.fromkeys(self.computations, 0.0)
        counts[self.entry] = 1.0
        for name in self._callers_first():
            for instruction in self.computations[name].instructions:
                times = counts[name] * (self.trips(instruction) if instruction.opcode == "while" else 1)
                for role, names in instruction.called.items():
                    if role != "to_apply" or instruction.opcode == "call":
                        for each in names:
                            counts[each] = counts.get(each, 0.0) + times
        return counts

    def _callers_first(self) -> list[str]:
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name in seen or name not in self.computations:
                return
            seen.add(name)
            for instruction in self.computations[name].instructions:
                for names in instruction.called.values():
                    for each in names:
                        visit(each)
            order.append(name)

        visit(self.entry)
        return order[::-1]

    def trips(self, loop: Instruction) -> int:
        """Turns of a `while`: XLA's own analysis where it is written down, otherwise the bound its counter is compared
        with, which for loops made by `jax.lax.scan` counts up from 0."""
        if found := _TRIPS.search(loop.rest):
            return int(found[1])
        condition = self.computations[loop.called["condition"][0]]
        bounds = set(self._bounds(condition, {}))
        if len(bounds) == 1:
            return bounds.pop()
        if loop.name not in self.unknown_loops:
            self.unknown_loops.append(loop.name)
        return 1

    def _bounds(self, computation: Computation, given: dict[int, int]) -> Iterator[int]:
        """Constants that a `<` compares with, also inside a fusion that the constant is handed to."""
        values = {each.name: number for each in computation.instructions if (number := _constant(each)) is not None}
        for each in computation.instructions:
            if each.opcode == "parameter" and (index := int(each.rest)) in given:
                values[each.name] = given[index]
        for each in computation.instructions:
            if each.opcode == "compare" and "direction=LT" in each.rest and each.operands[1] in values:
                yield values[each.operands[1]]
            for name in each.called.get("calls", []):
                passed = {i: values[operand] for i, operand in enumerate(each.operands) if operand in values}
                yield from self._bounds(self.computations[name], passed)


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode == "constant" and re.fullmatch(r"[su]\d+\[\].*", instruction.shape):
        found = re.match(r"-?\d+", instruction.rest)
        return int(found[0]) if found else None
    return None


def parse(text: str) -> Module:
    """The module that `compiled.as_text()` wrote down."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    lines: list[str] = []

    def finish() -> None:
        if current is not None and lines and (found := _INSTRUCTION.match(" ".join(lines))):
            current.instructions.append(_instruction(found[2], found[3], bool(found[1])))
        lines.clear()

    for line in text.splitlines():
        if current is None:
            if head := _COMPUTATION.match(line):
                current = computations.setdefault(head[2], Computation(head[2]))
                entry = head[2] if head[1] else entry
        elif line == "}":
            finish()
            current = None
        elif _INSTRUCTION.match(line):
            finish()
            lines.append(line)
        else:  # attributes of a Pallas kernel go over several lines
            lines.append(line)
    return Module(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    """Takes `shape opcode(operands), attributes` apart; shapes and operand lists may hold brackets of their own."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    inside = text[opening + 1 : closing]
    operands = tuple(_NAME.findall(inside))
    # A parameter's number and a constant's value stand where others have operands.
    rest = text[closing + 1 :] if operands else inside + text[closing + 1 :]
    if text.startswith("parameter"):
        rest = inside
    return Instruction(name, shape, text[:opening], operands, rest, root)


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"no closing bracket in {text[:80]!r}")
