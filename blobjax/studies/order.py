"""Which cell comes next: one that begins from another's checkpoint (`duration.start_from`) waits for that one's end."""

import threading

from blobjax.studies.results import read
from blobjax.studies.study import Cell, ResolvedStudy


class Order:
    """Cells to be run; safe to ask from several threads.

    Args:
      plan: the study.
      cells: those to be run, in this order where none waits for another.
    """

    def __init__(self, plan: ResolvedStudy, cells: list[Cell]):
        self._waiting = list(cells)
        self._unfinished = {cell.name for cell in cells}
        self._cells = {cell.name: cell for cell in plan.cells}
        self._lock = threading.Lock()

    @property
    def waiting(self) -> list[Cell]:
        """Those that have not begun."""
        with self._lock:
            return list(self._waiting)

    def take(self) -> Cell | None:
        """The first that waits for no other; None: there is none at the moment."""
        with self._lock:
            for cell in self._waiting:
                if cell.after not in self._unfinished:
                    self._waiting.remove(cell)
                    return cell
        return None

    def remove(self, cell: Cell) -> None:
        """It has begun already."""
        with self._lock:
            self._waiting.remove(cell)

    def put_back(self, cell: Cell) -> None:
        """It is to be gone on with, behind the others."""
        with self._lock:
            self._waiting.append(cell)

    def clear(self) -> None:
        """No other begins."""
        with self._lock:
            self._waiting.clear()

    def ended(self, cell: Cell) -> None:
        """What waits for it may begin."""
        with self._lock:
            self._unfinished.discard(cell.name)

    def unmet(self, cell: Cell) -> str:
        """Why a cell cannot begin, now that the one it begins from has ended; empty where it can."""
        if not cell.after:
            return ""
        status = read(self._cells[cell.after]).status
        # Also without a finite loss it has left checkpoints from before.
        return "" if status in ("finished", "diverged") else f"it begins from {cell.after}, which is {status}"
