"""The real train step, compiled for a machine, and what the compiler says of it."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from blobjax.compute.flops import flops_per_token, param_count
from blobjax.compute.sharding import make_layout
from blobjax.compute.target import compiling_for
from blobjax.conditioning.precision import policy
from blobjax.conditioning.products import gradient_format
from blobjax.config import BadInputError, Config
from blobjax.model.attention import choose
from blobjax.plan import hlo
from blobjax.plan.collectives import Collective, collectives, sent_for_gradients
from blobjax.plan.flops import hardware_flops
from blobjax.plan.hardware import Machine
from blobjax.plan.memory import kept_for_backward, traffic
from blobjax.program.program import Program, make_program
from blobjax.program.state import bytes_on_device


class TooLargeError(Exception):
    """The compiler cannot fit a step into the memory of a device; what it said."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      arguments: all that the step is given, by the compiler: the state and a batch.
      parameters, optimizer: of the arguments, as the state is sharded.
      temporaries: all that it needs in between, by the compiler.
      activations: of the temporaries, what the forward pass keeps for the backward pass.
      outputs: what the step returns and does not write over its arguments.
      capacity: the device's; None where it is not known.
    """

    arguments: int
    parameters: int
    optimizer: int
    temporaries: int
    activations: int
    outputs: int
    capacity: float | None

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs


@dataclass(frozen=True)
class Step:
    """A compiled train step.

    Attributes:
      parameters: trained parameters, embeddings included.
      length: steps of the run.
      tokens: of one step after the batch warm-up, and of the whole run.
      model_flops, hardware_flops: of one step, all devices together; the latter with what is computed again.
      traffic: bytes to and from one device's memory in one step.
      gradient_reduction: the formats that gradients of weights are summed over devices in, joined by `and`.
      gradient_sent: bytes that one device sends for that in one step, of `collectives`.
      notes: what of this is less sure than it looks.
    """

    mesh: Mesh
    attention: str
    parameters: int
    length: int
    tokens: int
    tokens_in_all: int
    memory: Memory
    collectives: tuple[Collective, ...]
    model_flops: float
    hardware_flops: float
    traffic: float
    gradient_reduction: str
    gradient_sent: float
    notes: tuple[str, ...]


def program_for(config: Config, machine: Machine) -> Program:
    """The config bound to a machine's devices; no data is looked at.

    Raises:
      BadInputError: a duration is in epochs, or the config does not fit the machine.
    """
    durations = {
        "duration.length": config.duration.length,
        "duration.warmup": config.duration.warmup,
        "duration.batch_warmup": config.duration.batch_warmup,
        "duration.seq_len_warmup": config.duration.seq_len_warmup,
        "optimizer.decay": config.optimizer.decay,
    }
    if problems := [
        f"{key} '{duration}': a plan looks at no data, and so does not know an epoch; give steps, tokens, flops or "
        "tokens/param"
        for key, duration in durations.items()
        if duration.unit == "epochs"
    ]:
        raise BadInputError(*problems)
    with compiling_for(machine.devices[0]):
        return make_program(config, make_layout(config, machine.devices), tokens_per_epoch=1)


def compile_step(config: Config, machine: Machine) -> Step:
    """Compiles a config's train step for a machine that need not be here.

    Raises:
      BadInputError: as `program_for`.
      TooLargeError: the compiler finds no way to fit it into a device's memory.
    """
    program = program_for(config, machine)
    # Timing kernels on the GPU to choose among them needs one; without, XLA takes its defaults.
    options = {"xla_gpu_autotune_level": 0} if machine.platform == "gpu" else None
    with compiling_for(machine.devices[0]), _without_cudnn(machine.platform):
        attention = choose(config)
        traced = program.trace_train_step()
        lowered = traced.lower()
        try:
            with _without_cache(machine.platform):
                compiled = lowered.compile(compiler_options=options)
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise TooLargeError(_needed(str(error))) from None
            raise
    module = hlo.parse(compiled.as_text())
    said = compiled.memory_analysis()
    memory = Memory(
        arguments=said.argument_size_in_bytes,
        parameters=bytes_on_device(program.state.params),
        optimizer=bytes_on_device(program.state.opt_state),
        temporaries=said.temp_size_in_bytes,
        activations=min(kept_for_backward(module), said.temp_size_in_bytes),
        outputs=max(said.output_size_in_bytes - said.alias_size_in_bytes, 0),
        capacity=machine.chip.hbm_bytes / machine.chip.devices if machine.chip else None,
    )
    mesh, clockwork = program.layout.mesh, program.clockwork
    batch, length = program.shape_BT
    found = collectives(module, mesh)
    return Step(
        mesh=mesh,
        attention=attention,
        parameters=param_count(config.model, config.conditioning, embeddings=True),
        length=clockwork.length,
        tokens=batch * length,
        tokens_in_all=clockwork.batches.sequences(clockwork.length) * length,
        memory=memory,
        collectives=tuple(found),
        model_flops=flops_per_token(config.model, length) * batch * length,
        hardware_flops=hardware_flops(traced.jaxpr.jaxpr, config),
        traffic=traffic(module),
        gradient_reduction=_reduction(config),
        gradient_sent=sent_for_gradients(found),
        notes=_notes(module, config, machine, attention, sent_for_gradients(found)),
    )


def _reduction(config: Config) -> str:
    """The formats that gradients of weights are summed over devices in, that of most products first."""
    formats = Counter(jnp.dtype(gradient_format(config, path)).name for path in config.model.products)
    return " and ".join(name for name, _ in formats.most_common())


@contextlib.contextmanager
def _without_cache(platform: str) -> Iterator[None]:
    """A program for devices that are not here can be put into jax's compilation cache and not taken out of it."""
    before = getattr(jax.config, "jax_enable_compilation_cache", True)
    jax.config.update("jax_enable_compilation_cache", before and platform == "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@contextlib.contextmanager
def _without_cudnn(platform: str) -> Iterator[None]:
    """cuDNN's attention can be compiled into a program where cuDNN is not installed; jax asks for its version all the
    same, and has no public way to tell it one."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    asked = cudnn.check_cudnn_version

    def version() -> int:
        try:
            return asked()
        except RuntimeError:
            return 91000  # 9.10, which jax 0.10 is built against

    if platform == "gpu":
        cudnn.check_cudnn_version = version
    try:
        yield
    finally:
        cudnn.check_cudnn_version = asked


def _needed(text: str) -> str:
    """What a compiler that ran out of memory says of how much; G are 2^30 bytes."""
    found = re.search(r"Used ([\d.]+[MG]) of ([\d.]+[MG]) hbm", text)
    found = found or re.search(r"\(([\d.]+[MG])\) exceeds available HBM \(([\d.]+[MG])\)", text)
    return f"{found[1]}iB of {found[2]}iB" if found else "the compiler ran out of it"


def _notes(module: hlo.Module, config: Config, machine: Machine, attention: str, sent: float) -> tuple[str, ...]:
    notes = []
    if module.unknown_loops:
        loops = ", ".join(module.unknown_loops)
        notes.append(f"the number of turns of {loops} is not known; they are counted as one")
    if config.conditioning.precision == "float32" and machine.chip is not None:
        notes.append("products of float32 are slower than the bfloat16 peak that times are reckoned with")
    if machine.torus and machine.slices > 1 and machine.chip is not None and machine.chip.network_bandwidth is None:
        notes.append("the network between slices is not published for this chip; no time is reckoned for it")
    policies = [policy(config.conditioning, path) for path in config.model.products]
    narrower = [each.compute for each in policies if each.compute != jnp.float32 and each.matmul is None]
    if config.compute.gradient_reduction == "float32" and narrower and sent:
        much = "about half" if len(narrower) == len(policies) else "less"
        notes.append(
            f"compute.gradient_reduction=compute would send {much} for the sums of gradients, each part rounded to "
            f"{jnp.dtype(narrower[0]).name}"
        )
    if config.compute.remat == "offload":
        notes.append("activations go to the host's memory and back; no time is reckoned for it")
    if attention == "cudnn":
        notes.append("what cuDNN's attention needs to work in is not among the temporaries")
    return tuple(notes)
