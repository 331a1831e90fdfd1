"""What the tests of training share."""

import os
from contextlib import contextmanager

import pytest


@pytest.fixture
def nobody():
    """Another user for a moment, who may come as far as pytest's folders and no farther."""
    if os.geteuid() != 0:
        pytest.skip("becomes another user for a moment, which needs root")

    @contextmanager
    def become(path):
        modes = {
            parent: parent.stat().st_mode for parent in path.parents if parent.is_relative_to("/tmp/pytest-of-root")
        }
        try:
            for parent in modes:
                parent.chmod(0o755)
            os.seteuid(65534)
            yield
        finally:
            os.seteuid(0)
            for parent, mode in modes.items():
                parent.chmod(mode)

    return become
