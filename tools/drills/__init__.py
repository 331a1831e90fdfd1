"""Fault drills: real processes, real faults, and the end state compared with a run that nothing happened to."""
