"""LAWS: scaling laws fitted to what was measured, with intervals, and predictions that say how far to trust them."""
