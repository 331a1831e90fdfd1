"""KEEPING THE RUN ALIVE: its keys."""

from blobjax.config.schema.section import Count, Section


class Reliability(Section):
    """KEEPING THE RUN ALIVE: when to give up on a process, and what is looked at twice."""

    check_every: Count = 0
    """Steps between looks for silent corruption: a step is run twice and compared bit by bit, and so are the copies of
    each parameter on different devices. Costs a step and a copy of the state; 0: never."""
