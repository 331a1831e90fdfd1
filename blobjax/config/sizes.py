"""Bytes as people read them."""


def in_words(count: float) -> str:
    """A number of bytes with a decimal prefix: `48.5 MB`."""
    if not count >= 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:  # which would be printed as 1000.0
            return f"{count:.1f} {unit}"
    return f"{count / 1000:,.1f} TB"
