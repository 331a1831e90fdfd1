"""KEEPING THE RUN ALIVE: signals, agreement between processes, the clock, the watchdog, stragglers, the supervisor."""
