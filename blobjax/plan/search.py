"""The layout of a run that is fastest on a machine: mesh shape, remat and microbatch.

Every combination is first weighed by arithmetic, from the model's closed form and the same speeds of links that the
roofline uses. What surely does not fit is dropped, and of the rest the few that promise most are compiled; what the
compiler says of those decides. Context parallelism is not searched: it costs attention its fast kernels.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from blobjax.compute.flops import flops_per_token, forward_flops_per_token, param_count
from blobjax.compute.mesh import make_mesh
from blobjax.compute.sharding import lay_over
from blobjax.conditioning.precision import policy
from blobjax.config import BadInputError, Config, dump, schema
from blobjax.plan.collectives import Collective
from blobjax.plan.compile import TooLargeError, compile_step
from blobjax.plan.estimate import Assumptions, Plan, make_plan
from blobjax.plan.hardware import Machine
from blobjax.plan.render import quantity
from blobjax.plan.roofline import Roofline, link_seconds

_REMAT = ("none", "dots", "full")
# Arithmetic misses what the compiler adds and saves; only what is beyond the capacity by this much is dropped at once.
_SLACK = 1.15
# What does not fit is refused by the compiler in a fraction of the time that the rest takes.
_TRIES = 3


@dataclass(frozen=True)
class Candidate:
    """One point of the search."""

    data: int
    fsdp: int
    tensor: int
    replica: int
    remat: str
    accumulation: int

    @property
    def compute(self) -> dict[str, Any]:
        """The keys of the config's compute section that it sets."""
        mesh = {"replica": self.replica, "data": self.data, "fsdp": self.fsdp, "tensor": self.tensor, "context": 1}
        return {"mesh": mesh, "remat": self.remat, "gradient_accumulation": self.accumulation}

    def __str__(self) -> str:
        sizes = {"replica": self.replica, "data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
        return f"{mesh}, remat {self.remat}, gradient_accumulation {self.accumulation}"

    def applied(self, config: Config) -> Config:
        """The config with this layout."""
        keys = self.compute | {"mesh": schema.Mesh(**self.compute["mesh"])}
        return config.model_copy(update={"compute": config.compute.model_copy(update=keys)})


@dataclass(frozen=True)
class Weighed:
    """A layout, by arithmetic: bytes of one device, and the roofline of a step."""

    layout: Candidate
    bytes: float
    times: Roofline


@dataclass(frozen=True)
class Laid:
    """A mesh, and for each of its axes the seconds that its links take for a byte that each device sends along it."""

    mesh: Mesh
    pace: dict[str, float]


@dataclass(frozen=True)
class SearchResult:
    """The best layout, compiled, the config with it, and the way there in words."""

    layout: Candidate
    config: Config
    plan: Plan
    report: str

    def as_yaml(self) -> str:
        """The whole config that trains with it, resolved: what stands in it depends on no other file."""
        first, last = self.plan.step_seconds or (0.0, 0.0)
        heading = f"# For {self.plan.machine.name}: {first:.3g} to {last:.3g} s a step expected.\n"
        return heading + dump(self.config)

    def as_json(self) -> dict[str, Any]:
        """The plan's keys, the keys of the config that the search set, and what was said on the way."""
        return self.plan.as_json() | {"layout": self.layout.compute, "search": self.report.splitlines()}


def find_layout(config: Config, machine: Machine, assumed: Assumptions, compiles: int) -> SearchResult:
    """The fastest layout that fits, by the middle of its roofline's best and worst case.

    Args:
      compiles: how many layouts that fit to compile; up to three times as many are tried.

    Raises:
      BadInputError: nothing fits, or the machine's peak is not known.
    """
    if machine.chip is None:
        raise BadInputError(f"--search weighs layouts by the chip's peaks, and none is known for {machine.name}")
    meshes: dict[tuple[int, ...], Laid | None] = {}
    known: list[Weighed] = []
    refused: Counter[str] = Counter()
    for layout in candidates(config, machine):
        try:
            each = weigh(layout, config, machine, assumed, meshes)
        except BadInputError as error:
            refused["; ".join(error.problems)] += 1
            continue
        if each is not None:
            known.append(each)
    capacity = machine.chip.hbm_bytes / machine.chip.devices
    fitting = sorted((each for each in known if each.bytes < _SLACK * capacity), key=lambda each: _score(each.times))
    lines = [f"{len(known)} layouts weighed, {len(fitting)} of them may fit"]
    if refused:
        example = refused.most_common(1)[0][0]
        lines.append(
            f"{refused.total()} layouts passed over, with which this config does not train, such as: {example}"
        )
    plans: list[tuple[Candidate, Plan]] = []
    compiled = 0
    # By how much the compiler's bytes exceed the arithmetic's, at each remat policy: learnt on the way.
    beyond = dict.fromkeys(_REMAT, 1 / _SLACK)
    for each in fitting:
        remat = each.layout.remat
        if len(plans) == compiles or compiled == _TRIES * compiles:
            break
        if each.bytes * beyond[remat] > capacity:
            continue
        compiled += 1
        try:
            plan = make_plan(compile_step(each.layout.applied(config), machine), machine, assumed)
        except TooLargeError as error:
            beyond[remat] = max(beyond[remat], 1.01 * capacity / each.bytes)
            lines.append(f"{each.layout}: does not fit ({error})")
            continue
        beyond[remat] = max(beyond[remat], plan.step.memory.total / each.bytes)
        assert plan.roofline is not None
        verdict = "" if plan.fits else ", does not fit"
        lines.append(
            f"{each.layout}: {plan.roofline.best:.3g} to {plan.roofline.worst:.3g} s, bound by {plan.roofline.bound}, "
            f"{quantity(plan.step.memory.total, 'B')}{verdict}"
        )
        if plan.fits:
            plans.append((each.layout, plan))
    if not plans:
        raise BadInputError(
            f"--search: none of the {compiled} layouts compiled fits {machine.name}; take more "
            "chips, a smaller duration.global_batch_size, or more --compiles",
            *lines,
        )
    layout, plan = min(plans, key=lambda pair: _score(pair[1].roofline))
    return SearchResult(layout, layout.applied(config), plan, "\n".join(lines))


def _score(times: Roofline | None) -> float:
    assert times is not None
    return (times.best + times.worst) / 2


def candidates(config: Config, machine: Machine) -> Iterator[Candidate]:
    """Every layout that divides the devices, heads and batch. Slices are joined by `replica` alone."""
    model, batch = config.model, config.duration.global_batch_size
    devices = len(machine.devices) // machine.slices
    for tensor in _divisors(devices):
        if tensor > 16 or model.n_heads % tensor or model.d_ff % tensor:
            continue
        for fsdp in _divisors(devices // tensor):
            data = devices // tensor // fsdp
            for remat, parts in itertools.product(_REMAT, _divisors(batch)):
                if batch % (machine.slices * data * fsdp * parts) == 0:
                    yield Candidate(data, fsdp, tensor, machine.slices, remat, parts)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def weigh(
    layout: Candidate,
    config: Config,
    machine: Machine,
    assumed: Assumptions,
    meshes: dict[tuple[int, ...], Laid | None],
) -> Weighed | None:
    """Bytes and times of a layout by arithmetic; None where the machine cannot be laid out so.

    Args:
      meshes: of earlier layouts, by their sizes; these take longer than all of the rest.

    Raises:
      BadInputError: the config does not train so, such as a smaller batch that does not divide.
    """
    chip, model = machine.chip, config.model
    assert chip is not None
    sizes = (layout.replica, layout.data, layout.fsdp, layout.tensor)
    if sizes not in meshes:
        try:
            mesh = make_mesh(schema.Mesh(**layout.compute["mesh"]), machine.devices)
            meshes[sizes] = Laid(mesh, {axis: _pace(mesh, axis, machine) for axis in mesh.shape})
        except (BadInputError, NotImplementedError, ValueError):
            meshes[sizes] = None
    laid = meshes[sizes]
    if laid is None:
        return None
    mesh = laid.mesh
    lay_over(mesh, layout.applied(config))
    precision = policy(config.conditioning)
    wide, narrow = np.dtype(precision.params).itemsize, np.dtype(precision.compute).itemsize
    params = param_count(model, config.conditioning, embeddings=True)
    shards = layout.fsdp * layout.tensor
    batch, length, parts = config.duration.global_batch_size, config.data.seq_len, layout.accumulation
    tokens = batch * length / parts / (layout.replica * layout.data * layout.fsdp)
    head = model.d_model * model.vocab_size
    chunk = config.compute.loss_chunk_tokens * tokens * parts / (batch * length)
    logits = min(chunk or tokens, tokens) * model.vocab_size / layout.tensor
    # Per token and layer: the input; what matmuls with weights give; what stands between them.
    outputs = (model.n_heads + 2 * model.n_kv_heads) * model.d_head + (2 + model.gated) * model.d_ff
    kept = {
        "full": model.d_model,
        "dots": 3 * model.d_model + outputs / layout.tensor,
        "none": 7 * model.d_model + 1.6 * outputs / layout.tensor,
    }[layout.remat]
    layer = (params - head * (1 if model.tie_embeddings else 2)) / model.n_layers
    moments = {"adamw": 8, "lion": 4, "muon": 4}[config.optimizer.name]
    size = (
        params / shards * (wide + moments + (4 if parts > 1 else 0))
        + tokens * model.n_layers * kept * narrow
        + 3 * layer / layout.tensor * narrow
        + 4 * tokens * outputs / layout.tensor * narrow
        + 8 * logits
        + head / layout.tensor * (narrow + 4)
    )
    forward = forward_flops_per_token(model, length)
    again = {"none": 0.0, "dots": 0.1, "full": 1.0}[layout.remat] * forward
    flops = batch * length * (flops_per_token(model, length) + again)

    weights = params / layout.tensor * narrow
    gathers = 2 if layout.fsdp > 1 else 0
    stream = tokens * model.d_model * narrow * model.n_layers
    passes = 3 if layout.remat == "full" else 2
    # Along which axis, bytes, and how often each of them is sent: an all-reduce sends twice what an all-gather does.
    wanted = [
        ("fsdp", gathers * parts * weights, 1),
        ("fsdp", parts * weights, 2),
        ("data", parts * weights / layout.fsdp, 2),
        ("replica", parts * weights / layout.fsdp, 2),
        ("tensor", 2 * passes * parts * stream, 2),
    ]
    links = sum(
        times * total * (mesh.shape[axis] - 1) / mesh.shape[axis] * laid.pace[axis] for axis, total, times in wanted
    )
    moved = params / shards * 3 * (wide + moments) + parts * (passes + 1) * weights
    moved += tokens * parts * model.n_layers * passes * 3 * (model.d_model * 4 + outputs / layout.tensor) * narrow
    part = assumed.efficiencies
    times = Roofline(
        flops / mesh.size / (chip.bf16_flops / chip.devices * part.compute),
        moved / (chip.hbm_bandwidth / chip.devices * part.memory),
        links / part.links,
    )
    return Weighed(layout, size, times)


def _pace(mesh: Mesh, axis: str, machine: Machine) -> float:
    """Seconds that the links take for a byte that each device sends along an axis, in rings."""
    n = mesh.shape[axis]
    if n == 1:
        return 0.0
    ids = np.arange(mesh.size).reshape(list(mesh.shape.values()))
    groups = np.moveaxis(ids, list(mesh.shape).index(axis), -1).reshape(-1, n)
    return link_seconds(Collective("all-gather", (axis,), 1, 1, 1, tuple(map(tuple, groups.tolist()))), machine, mesh)
