"""Shows whether a change of the code changed what shipped configs compute.

    python tools/same_program.py record before          # with the code as it was
    python tools/same_program.py record after           # with the code as it is
    python tools/same_program.py compare before after   # every difference, one line each; exit code 1 if there is one

For each case it records the resolved YAML, the state's tree (path, shape, dtype, sharding) and the lowered StableHLO of
`train_step` and `eval_step`. Nothing is compiled or computed, so a record takes minutes and needs no accelerator; two
equal texts compute the same numbers on any device.
"""

import difflib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Small enough to trace quickly; every switch is on top of it.
SMALL = (
    "model={vocab_size: 256, n_layers: 2, d_model: 64, n_heads: 4, d_ff: 128, activation: swiglu, max_seq_len: 128}",
    "data.seq_len=64",
    "duration={length: 20 steps, global_batch_size: 16, warmup: 2 steps}",
)
GUARD = "conditioning.guard={sigmas: 4, rollback: {snapshots: 1, snapshot_every: 5}}"
SWITCHES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "adamw": ("optimizer.name=adamw",),
    "lion": ("optimizer.name=lion",),
    "independent-decay": ("optimizer={name: adamw, weight_decay_mode: independent}",),
    "update-clipping": ("optimizer={name: adamw, update_clipping: true}",),
    "untied": ("model.tie_embeddings=false",),
    "geglu-gqa": ("model.activation=geglu", "model.n_kv_heads=2"),
    "sliding-window": ("model.sliding_window=16",),
    "unrolled": ("compute.scan_layers=false",),
    "accumulation": ("compute.gradient_accumulation=4",),
    "loss-chunks": ("compute.loss_chunk_tokens=128",),
    "remat-full": ("compute.remat=full",),
    "remat-dots": ("compute.remat=dots",),
    "remat-attention": ("compute.remat=attention",),
    "bfloat16": ("conditioning.precision=bfloat16",),
    "bfloat16-reduction": ("conditioning.precision=bfloat16", "compute.gradient_reduction=compute"),
    "bfloat16-params-kahan": ("conditioning={precision: bfloat16_params, parameter_rounding: kahan}",),
    "bfloat16-params-stochastic": ("conditioning={precision: bfloat16_params, parameter_rounding: stochastic}",),
    "float16-dynamic": ("conditioning={precision: float16, loss_scaling: {kind: dynamic}}",),
    "float16-static-guard": ("conditioning={precision: float16, loss_scaling: {kind: static}}", GUARD),
    "fp8-blocks": ("conditioning={precision: fp8, simulate: true, matmul_scaling: blocks}",),
    "mxfp8": ("conditioning={precision: mxfp8, simulate: true}",),
    "nvfp4-overrides": (
        "conditioning={precision: nvfp4, simulate: true, precision_overrides: {blocks/mlp/down: bfloat16}}",
    ),
    "mup": ("conditioning.parametrisation={kind: mup, base_width: 32}", "optimizer.name=adamw"),
    "completep": (
        "conditioning.parametrisation={kind: completep, base_width: 32, base_depth: 1}",
        "optimizer.name=adamw",
    ),
    "layernorm-sandwich": ("conditioning={norm: layernorm, norm_placement: sandwich, embedding_norm: true}",),
    "dyt-post": ("conditioning={norm: dyt, norm_placement: post}",),
    "peri": ("conditioning.norm_placement=peri",),
    "soft-caps": ("conditioning={attention_soft_cap: 50, final_soft_cap: 30, z_loss: 0}",),
    "qk-clip": ("conditioning={qk_clip: 100, probe_every: 1, qk_norm: false}", "optimizer.name=muon"),
    "zclip": ("conditioning.clip=zclip",),
    "adagc": ("conditioning.clip=adagc",),
    "agc": ("conditioning.clip=agc",),
    "guard": (GUARD,),
    "probes": ("conditioning.probe_every=2",),
    "probes-accumulation": ("conditioning.probe_every=2", "compute.gradient_accumulation=2"),
    "seq-len-warmup": ("duration.seq_len_warmup=10 steps", "duration.seq_len_start=16"),
    "documents-unmasked": ("data.mask_documents=false",),
    "mesh-fsdp": ("compute.mesh={data: 2, fsdp: 4}",),
    "mesh-tensor-context": ("compute.mesh={data: 1, fsdp: 2, tensor: 2, context: 2}",),
    "mesh-replica": ("compute.mesh={replica: 2, data: 2, fsdp: 2}", "compute.gradient_accumulation=2"),
}
DEVICES = 8
# Tokens of an epoch, which only lengths in epochs depend on.
EPOCH = 1_000_000


def cases() -> dict[str, tuple[str, tuple[str, ...], int]]:
    """Name of a case to config, overrides and number of devices."""
    from blobjax.config.load import shipped

    found: dict[str, tuple[str, tuple[str, ...], int]] = {}
    for name in shipped():
        if not name.startswith("studies/"):
            found[name.replace("/", "-")] = (name, (), DEVICES if name != "laptop" else 1)
    for name, overrides in SWITCHES.items():
        found[f"small-{name}"] = ("laptop", (*SMALL, *overrides), DEVICES if name.startswith("mesh-") else 1)
    return found


def record(out: Path) -> int:
    """Writes four texts for each case into a folder."""
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    from blobjax.compute.sharding import make_layout
    from blobjax.config import dump, load
    from blobjax.program.program import make_program
    from blobjax.program.state import flatten

    out.mkdir(parents=True, exist_ok=True)
    for case, (name, overrides, devices) in cases().items():
        config = load(name, overrides)
        program = make_program(config, make_layout(config, jax.devices()[:devices]), EPOCH)
        state = "".join(
            f"{path} {leaf.shape} {leaf.dtype} {leaf.sharding.spec}\n" for path, leaf in flatten(program.state).items()
        )
        texts = {
            "config": dump(config),
            "state": state,
            "train_step": program.lower_train_step().as_text(),
            "eval_step": program.lower_eval_step().as_text(),
        }
        for kind, text in texts.items():
            (out / f"{case}.{kind}.txt").write_text(text, encoding="utf-8")
        print(case, flush=True)
    return 0


def compare(before: Path, after: Path) -> int:
    """Prints each text that differs, with its first lines that do."""
    names = sorted({path.name for folder in (before, after) for path in folder.glob("*.txt")})
    different = 0
    for name in names:
        texts = [
            (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else ""
            for folder in (before, after)
        ]
        if texts[0] == texts[1]:
            continue
        different += 1
        lines = list(difflib.unified_diff(*(text.splitlines() for text in texts), lineterm="", n=0))[2:]
        print(f"{name}: {len([line for line in lines if line[:1] in '+-'])} lines differ")
        print("".join(f"    {line[:160]}\n" for line in lines[:6]), end="")
    print(f"{different} of {len(names)} texts differ")
    return 1 if different or not names else 0


def main() -> int:
    match sys.argv[1:]:
        case ["record", out]:
            return record(Path(out))
        case ["compare", before, after]:
            return compare(Path(before), Path(after))
    print("usage: python tools/same_program.py {record DIR | compare DIR DIR}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
