"""What the backward pass recomputes instead of keeping (rematerialisation), as named policies.

Source: Chen et al. 2016 for the idea; jax.checkpoint for the means.
"""

from collections.abc import Callable

import jax

from blobjax.compute import target
from blobjax.config import BadInputError

BLOCK_INPUT = "block_input"
"""Name (jax.ad_checkpoint.checkpoint_name) of the residual stream as it enters a block: all that `offload` keeps."""


def remat_block(run_block: Callable, policy: str) -> Callable:
    """Wraps the function of one block: (parameters, x_BTD, …) -> x_BTD.

    Policies (`compute.remat`), from most memory and least work to the opposite:
      none       keep everything.
      attention  recompute the attention scores and weights, the only tensors that grow with T²; the block applies
                 this one itself, around `attend`.
      dots       keep the outputs of matmuls with weights; recompute the rest, attention scores included.
      full       keep the block's input only.
      offload    as full, with that input moved to host memory until it is needed again.

    Raises:
      BadInputError: the device has no host memory to offload to.
    """
    policies = jax.checkpoint_policies
    if policy in ("none", "attention"):
        return run_block
    if policy == "offload":
        device = target.device()
        kinds = {memory.kind for memory in device.addressable_memories()}
        if "pinned_host" not in kinds:
            raise BadInputError(
                f"compute.remat=offload needs pinned host memory, which {device.device_kind} does not offer "
                f"(it has {', '.join(sorted(kinds))}); set compute.remat=full"
            )
    keep = {
        "dots": policies.dots_with_no_batch_dims_saveable,
        "full": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[policy]
    # Inside lax.scan and in an unrolled jit alike, XLA could merge the recomputation with the forward pass it repeats,
    # and so undo it; jax's default barrier (prevent_cse) forbids that.
    return jax.checkpoint(run_block, policy=keep)
