"""What the wrappers around the optimizer (guard, loss scaling, QK-clip) say of a step. The step asks here.

A wrapper keeps what it knows in its own part of the optimizer's state, a NamedTuple with a method `metrics`. One that
refuses steps counts them there as `skipped`; one that scales the loss keeps the `scale` there; one that wraps another
keeps its state as `inner`. Whatever optax chain a wrapper sits in, it is found.
"""

import functools
import operator
from typing import Any, Protocol, runtime_checkable

import jax


@runtime_checkable
class WrapperState(Protocol):
    """A wrapper's part of the optimizer's state."""

    def metrics(self, before: Any) -> dict[str, jax.Array]:
        """What the wrapper did in the step that led from `before` to this state: float32 scalars by metric."""


def _wrappers(opt_state: Any) -> list[Any]:
    """The states of all wrappers, from the outermost inwards."""
    is_wrapper = lambda node: isinstance(node, WrapperState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_wrapper) if is_wrapper(node)]
    return [state for node in found for state in (node, *_wrappers(getattr(node, "inner", None)))]


def metrics(before: Any, after: Any) -> dict[str, jax.Array]:
    """Metrics of a step by all wrappers, from the optimizer's state before and after it.

    Where two wrappers publish one name, the inner one counts: what loss scaling refuses is no event to the guard.
    """
    found: dict[str, jax.Array] = {}
    for old, new in zip(_wrappers(before), _wrappers(after), strict=True):
        found |= new.metrics(old)
    return found


def refused(opt_state: Any) -> Any:
    """Steps that wrappers have refused so far, int32 scalar. A step is accepted where it does not grow."""
    counts = [state.skipped for state in _wrappers(opt_state) if hasattr(state, "skipped")]
    return functools.reduce(operator.add, counts) if counts else 0


def loss_scale(opt_state: Any) -> jax.Array | None:
    """What the loss is multiplied by before it is differentiated, float32 scalar; None without loss scaling."""
    return next((state.scale for state in _wrappers(opt_state) if hasattr(state, "scale")), None)
