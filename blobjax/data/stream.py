"""The stream: index-addressable windows of a mixture, shuffled, batched and read ahead.

Sequence n of a run is a pure function of (seed, config, n): the mixture says which domain it is of and which of the
domain's sequences it is, that domain's shuffle says which window, and the window says where its tokens lie. A batch is
nothing but the sequences it is made of, so it does not depend on hosts, devices, workers or where the run was resumed,
and the stream's whole state is one integer.
Dims: B batch (rows asked for), T time, V vocabulary.
"""

import sys
from collections.abc import Iterator

import numpy as np

from blobjax.config import BadInputError, Config
from blobjax.data.faults import spoil
from blobjax.data.mixture import Mixture
from blobjax.data.passed_over import PassedOver
from blobjax.data.preparation import Domain, Prepared
from blobjax.data.shuffle import shuffled
from blobjax.data.tokenizer import Tokenizer
from blobjax.data.windows import PackedExamples, Row, TextWindows, Windows

Batch = dict[str, np.ndarray]


class Stream:
    """Training and held-out windows of a prepared mixture. Made by `open_stream`.

    Attributes:
      tokenizer: what the tokens mean.
      tokens_per_epoch: training tokens in one pass over what is used of each domain of positive weight.
      fingerprint: tells the tokens on disk from any others; compare before resuming.
      notes: what was skipped when the windows were cut, a line each.
      passed_over: sequences that the run leaves out; it grows when the run rolls back. Batches asked for afterwards are
        without them.
    """

    def __init__(self, config: Config, prepared: Prepared) -> None:
        self._data, self._seed = config.data, config.seed
        self._faults, self._vocab_size = config.faults, config.model.vocab_size
        self.passed_over = PassedOver()
        self.tokenizer: Tokenizer = prepared.tokenizer
        self.fingerprint = prepared.fingerprint
        self._mixture = Mixture(config.data.mixture)
        self.notes: list[str] = []
        self._train = [self._open(prepared.domains[name], "train") for name in self._mixture.names]
        self._held_out = {name: self._open(domain, "held_out") for name, domain in prepared.domains.items()}
        _check_lengths(prepared, self._mixture.names, self._train, self._data.seq_len)
        self._windows = [used(len(windows), self._data.fraction) for windows in self._train]
        self.tokens_per_epoch = sum(self._windows) * self._data.seq_len

    def _open(self, domain: Domain, split: str) -> Windows:
        """A split of a domain, cut into windows."""
        flat, length = domain.tokens(split), self._data.seq_len
        if (marks := domain.marks(split)) is None:
            return TextWindows(flat, length, partial=split == "held_out")
        source = self._data.sources[domain.name]
        packed = PackedExamples(flat, marks, length, self.tokenizer.separator, domain.name, source)
        if packed.skipped:
            what = f"{packed.skipped:,} of {packed.examples:,} {split.replace('_', '-')} examples"
            self.notes.append(f"domain '{domain.name}': skipped {what}, which are longer than data.seq_len {length}")
        return packed

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often each trained domain has been gone through after so many sequences of the run."""
        counts = np.array(self._mixture.counts(self.passed_over.number(sequences)))
        for first, last in self.passed_over.before(sequences):
            counts -= np.subtract(self._mixture.counts(last), self._mixture.counts(first))
        return {
            name: float(count) / windows
            for name, count, windows in zip(self._mixture.names, counts, self._windows, strict=True)
        }

    def batches(self, first_sequence: int, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Endless batches, read ahead in a thread.

        Args:
          first_sequence: global number of the first sequence of the first global batch: sequences trained on before.
          rows: int [B], which rows of each global batch to return, in this order; each in [0, batch_size).
          batch_size: sequences in a global batch.

        Returns:
          Iterator over dicts of [B, T] arrays: tokens, targets, segments, positions, target_bytes (int32) and mask
          (float32, 1 where the target counts).
        """
        import grain  # about a second, so not before it is needed

        local = [int(row) for row in rows]
        if not all(0 <= row < batch_size for row in local):
            raise ValueError(f"rows {min(local)} to {max(local)} are not all in a batch of {batch_size}")

        def batch(step: int) -> Batch:
            first = first_sequence + step * batch_size
            return self.sequences([first + row for row in local])

        steps = (sys.maxsize - first_sequence) // batch_size
        # One thread: the work is short Python holding the interpreter, of which a second thread would get no more.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._data.prefetch)
        return iter(grain.MapDataset.range(steps).map(batch).to_iter_dataset(options))

    def sequences(self, numbers: list[int]) -> Batch:
        """The batch made of these sequences of the run, given by global number; [B, T] arrays as in `batches`."""
        numbers = [self.passed_over.number(number) for number in numbers]
        located = [self._mixture.locate(number) for number in numbers]
        batch = self._pack([self._train[domain][self._window(domain, index)] for domain, index in located])
        spoil(batch, numbers, self._faults, self._vocab_size, self._seed)
        return batch

    def _window(self, domain: int, index: int) -> int:
        """Where the domain's sequence number `index` lies, in windows."""
        name, count, whole = self._mixture.names[domain], self._windows[domain], len(self._train[domain])
        window = shuffled(index, count, self._seed, name)
        # The first so many of an order drawn once and for all: so a smaller part lies within a larger one.
        return window if count == whole else shuffled(window, whole, 0, f"{name}/fraction")

    def held_out(self, domain: str, n: int) -> Batch:
        """Up to n windows spread evenly over a domain's held-out text, the same ones every time.

        The text's last window is filled up with padding, so a domain has at least one however little is held out.

        Returns:
          Dict of [n', T] arrays as in `batches`, n' <= n.
        """
        windows = self._held_out[domain]
        count = min(n, len(windows))
        return self._pack([windows[int(each)] for each in np.arange(count) * len(windows) // max(count, 1)])

    def _pack(self, rows: list[Row]) -> Batch:
        """Windows of T+1 tokens as model input."""
        tokens, filled = np.stack([row.tokens for row in rows]), np.array([row.filled for row in rows])
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        time = np.arange(inputs.shape[1], dtype=np.int32)
        opens = inputs == self.tokenizer.separator
        for row, known in enumerate(rows):
            if known.opens is not None:
                opens[row] = known.opens
        if not self._data.mask_documents:
            opens = np.zeros_like(opens)
        # A window that begins inside a document has it as its segment 1. Positions count from where a document or the
        # window begins: attention sees no further back, and no position is beyond the length the model was made for.
        segments = np.cumsum(opens, axis=1, dtype=np.int32) + ~opens[:, :1]
        positions = time - np.maximum.accumulate(np.where(opens, time, 0), axis=1)
        there = time < filled[:, None] - 1
        counts = there.copy()
        for row, known in enumerate(rows):
            if known.counts is not None:
                counts[row] &= known.counts
        return {
            "tokens": np.where(there, inputs, 0).astype(np.int32),
            "targets": np.where(there, targets, 0).astype(np.int32),
            "segments": np.where(there, segments, 0).astype(np.int32),
            "positions": np.where(there, positions, 0).astype(np.int32),
            "mask": counts.astype(np.float32),
            "target_bytes": np.where(counts, self.tokenizer.bytes_per_token[targets], 0).astype(np.int32),
        }


def used(windows: int, fraction: float) -> int:
    """How many of a domain's windows a run sees (data.fraction); at least one."""
    return max(round(windows * fraction), 1)


def open_stream(config: Config, prepared: Prepared) -> Stream:
    """The training stream over what `prepare` returned.

    Raises:
      BadInputError: a domain is shorter than one sequence.
    """
    return Stream(config, prepared)


def _check_lengths(prepared: Prepared, names: tuple[str, ...], train: list[Windows], length: int) -> None:
    problems = [
        f"domain '{name}' has {len(prepared.domains[name].tokens('train'))} training tokens, less than one sequence "
        f"(data.seq_len + 1 = {length + 1}); give more text, a smaller seq_len or weight 0"
        for name, windows in zip(names, train, strict=True)
        if not len(windows)
    ]
    if problems:
        raise BadInputError(*problems)
