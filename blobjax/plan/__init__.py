"""PLAN: the real step compiled for hardware that is not there: memory, collectives, roofline, days, energy, cost."""
