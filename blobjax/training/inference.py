"""A run's newest parameters on this machine, and text sampled from them."""

from typing import Any

import jax

from blobjax import data
from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.checkpointing.files import BadCheckpointError, read_record
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError
from blobjax.config.schema import Mesh
from blobjax.data.tokenizer import load as load_tokenizer
from blobjax.model import sampling
from blobjax.program.state import Architecture, abstract_params, architecture
from blobjax.runs.directory import RunDirectory


def sample(
    arch: Architecture,
    params: Any,
    tokenizer: data.Tokenizer,
    prompt: str,
    tokens: int,
    *,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.95,
) -> str:
    """Text that continues a prompt.

    Args:
      tokens: how many are drawn.
      temperature: 0 takes the likeliest token each time.
      top_p: draws from the smallest set of tokens with at least this probability (Holtzman et al. 2020).

    Raises:
      BadInputError: prompt and continuation are longer than model.max_seq_len.
    """
    # A document opens with the separator, so a prompt is read as the beginning of one.
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise BadInputError(f"the prompt is not valid UTF-8: {error.reason}") from None
    ids = [tokenizer.separator, *tokenizer.encode(prompt)]
    drawn = sampling.generate(
        arch.merge(params), ids, tokens, jax.random.key(seed), temperature=temperature, top_p=top_p
    ).tolist()
    if tokenizer.separator in drawn:
        drawn = drawn[: drawn.index(tokenizer.separator)]
    return tokenizer.decode(drawn)


def sample_run(run: str, prompt: str, tokens: int, *, seed: int, temperature: float, top_p: float) -> str:
    """Text sampled from a run directory's newest checkpoint, on this machine's first device.

    Raises:
      BadInputError: no run or no checkpoint there, or a prompt that cannot be used.
    """
    directory = RunDirectory(run)
    if not directory.config.is_file():
        raise BadInputError(f"{run} is not a run directory: it has no config.yaml; give one such as runs/laptop")
    config = directory.previous_config()
    assert config is not None
    if not directory.checkpoints.is_dir():
        raise BadInputError(f"run {run} has no checkpoint yet; train it first")
    # One device and whatever attention it can do, wherever the run was trained.
    compute = config.compute.model_copy(update={"mesh": Mesh(), "attention": "auto"})
    tokenizer = str(directory.tokenizer) if directory.tokenizer.is_file() else config.data.tokenizer
    data_settings = config.data.model_copy(update={"tokenizer": tokenizer})
    # Simulated formats give about the same numbers, whatever the device multiplies.
    conditioning = config.conditioning.model_copy(update={"simulate": True})
    config = config.model_copy(update={"compute": compute, "conditioning": conditioning, "data": data_settings})
    arch = architecture(config)
    like = abstract_params(arch, make_layout(config, jax.devices()[:1]))
    checkpointer = Checkpointer(directory.checkpoints)
    try:
        steps = checkpointer.steps()
        if not steps:
            raise BadInputError(f"run {run} has no checkpoint yet; train it first")
        try:
            params = checkpointer.restore_params(steps[-1], like)
            recorded = read_record(directory.checkpoints / str(steps[-1])).inputs or {}
        except BadCheckpointError as bad:
            raise BadInputError(
                f"checkpoint {directory.checkpoints / str(steps[-1])} is bad ({bad}); move it away to sample from "
                f"{f'step {steps[-2]}' if steps[1:] else 'a later one'}"
            ) from None
    finally:
        checkpointer.close()
    means = load_tokenizer(config)
    if recorded.get("tokenizer", means.fingerprint) != means.fingerprint:
        raise BadInputError(
            f"{tokenizer} is not the tokenizer that {run} was trained with; restore it"
            + (", or remove it to use the one of data.tokenizer" if directory.tokenizer.is_file() else "")
        )
    return sample(
        arch,
        params,
        means,
        prompt,
        tokens,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
    )
