"""REPORT: what a run looked like, as one self-contained page; and how all pages and plots look. Starts no jax."""
