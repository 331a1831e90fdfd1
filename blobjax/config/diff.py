"""What differs between two configs, and which differences would make a resumed run another run, or several processes
other runs."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from blobjax.config.before import values_before
from blobjax.config.schema import Config

# Everything alters the maths unless it stands here. Whole sections, or single keys:
_SAME_MATHS = (
    "name",
    "logging",  # where and how much is written
    "checkpoint",  # when the state is saved; a resumed run is bitwise the uninterrupted one
    "reliability",  # when to give up, and what is looked at twice
    "evaluation",  # held-out losses are read, never trained on
    # The hardware may change between attempts. Mesh, remat, scanning, the attention kernel, chunks of the loss and
    # parts of the batch compute the same function and differ in rounding only.
    "compute",
    # What is read, and with which tokenizer, is pinned by the tokens' fingerprint that stands in every checkpoint.
    "data.sources",
    "data.tokenizer",
    "data.max_document_bytes",  # whether a document is taken, not what it says
    "data.prefetch",  # how early batches are made, not which
    "data.prepared_dir",  # where token shards lie; their content is checked against hashes
    "duration.wall_clock_limit",  # when to stop for now
    # A rollback comes to the same state from an older one, and a halted run may be given more of them.
    "conditioning.guard.rollback.snapshots",
    "conditioning.guard.rollback.snapshot_every",
    "conditioning.guard.rollback.at_most",
    # Probes are looked at, and change no number (QK-clip, which acts on them, is the exception below).
    "conditioning.probe_every",
    "conditioning.probe_format",
    "conditioning.noise_scale_every",
    "conditioning.curvature_every",
    "conditioning.curvature_iterations",
)

# What may differ between the hosts of one run: where things lie on each, and what each tells of itself. Whatever these
# lead to is compared once it was read: the data by its fingerprint, the checkpoint a run begins from by its step and
# the fingerprints of its arrays.
OWN_TO_A_HOST = (
    "logging.run_dir",  # a shared file system may be mounted at another place
    "logging.wandb",  # process 0 alone speaks to it
    "data.prepared_dir",
    "data.sources.*.path",
    "data.tokenizer",
    "duration.start_from",
    "compute.compilation_cache",
    "compute.device_watts",  # of the host's own devices, for its own count of energy
)


def own_to_a_host(key: str) -> bool:
    """Whether processes of one run may have different values of this dotted key."""
    return any(fnmatchcase(key, own) or key.startswith(f"{own}.") for own in OWN_TO_A_HOST)


def changes_maths(key: str) -> bool:
    """Whether a run resumed with another value of this dotted key would be another run.

    `conditioning` mostly is (precision, norms and clipping decide every update), and so is `duration.length` (it
    stretches the schedule).
    """
    return not any(key == same or key.startswith(f"{same}.") for same in _SAME_MATHS)


def changed_maths(old: Config, new: Config) -> list[str]:
    """The lines of `config_diff` that would make a run resumed with the new config another run."""
    clips = old.conditioning.qk_clip or new.conditioning.qk_clip
    return [
        line
        for line in config_diff(old, new)
        if changes_maths(key := line.split(":")[0]) or (clips and key == "conditioning.probe_every")
    ]


def maths(config: Config) -> dict[str, Any]:
    """Every dotted key that decides what a run computes, to its value as JSON has it."""
    clips = config.conditioning.qk_clip
    return {
        key: value
        for key, value in leaves(config.model_dump(mode="json")).items()
        if changes_maths(key) or (clips and key == "conditioning.probe_every")
    }


def changed_since(recorded: Mapping[str, Any], config: Config) -> list[str]:
    """The lines of `config_diff` from what `maths` said once to a config; none where nothing was recorded.

    A key that did not exist then, in an earlier version, counts as having had the value that reproduces such a run: its
    default, but for those of `before.py`.
    """
    if not recorded:
        return []
    before = {key: value for key, value in recorded.items() if changes_maths(key) or key in maths(config)}
    now, default = maths(config), maths(Config()) | values_before(config)
    new = [key for key in now if key not in before and now[key] != default.get(key)]
    return [
        f"{key}: {_show(before, key)} -> {_show(now, key)}"
        for key in [*before, *new]
        if key not in before or key not in now or before[key] != now[key]
    ]


def config_diff(old: Config, new: Config) -> list[str]:
    """One line for each key that differs: `model.d_model: 256 -> 512`, in schema order."""
    before, after = leaves(old.model_dump(mode="json")), leaves(new.model_dump(mode="json"))
    return [
        f"{key}: {_show(before, key)} -> {_show(after, key)}"
        for key in [*before, *(key for key in after if key not in before)]
        if key not in before or key not in after or before[key] != after[key]
    ]


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value, of a config as a dictionary."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _show(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "(absent)"
