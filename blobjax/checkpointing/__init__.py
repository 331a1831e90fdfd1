"""CHECKPOINTING: saving, verifying, restoring and keeping checkpoints: exact, elastic, fingerprinted."""
