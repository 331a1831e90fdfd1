"""When this process began, as near as Python can say: imported before everything that takes time."""

import time

BEGAN = time.monotonic()
