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
from blobjax.data.preparation import Prepared
from blobjax.data.shuffle import shuffled
from blobjax.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


class Stream:
    """Training and held-out windows of a prepared mixture. Made by `open_stream`.

    Attributes:
      tokenizer: what the tokens mean.
      tokens_per_epoch: training tokens in one pass over what is used of each domain of positive weight.
      fingerprint: tells the tokens on disk from any others; compare before resuming.
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
        self._train = [prepared.domains[name].tokens("train") for name in self._mixture.names]
        self._held_out = {name: domain.tokens("held_out") for name, domain in prepared.domains.items()}
        self._all_windows = [(len(tokens) - 1) // self._data.seq_len for tokens in self._train]
        _check_lengths(self._mixture.names, self._train, self._all_windows, self._data.seq_len)
        self._windows = [used(count, self._data.fraction) for count in self._all_windows]
        self.tokens_per_epoch = sum(self._windows) * self._data.seq_len

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
        length = self._data.seq_len
        numbers = [self.passed_over.number(number) for number in numbers]
        tokens = np.empty((len(numbers), length + 1), np.int32)
        for row, number in enumerate(numbers):
            domain, index = self._mixture.locate(number)
            start = self._window(domain, index) * length
            tokens[row] = self._train[domain][start : start + length + 1]
        batch = self._pack(tokens)
        spoil(batch, numbers, self._faults, self._vocab_size, self._seed)
        return batch

    def _window(self, domain: int, index: int) -> int:
        """Where the domain's sequence number `index` lies, in windows."""
        name, count, whole = self._mixture.names[domain], self._windows[domain], self._all_windows[domain]
        window = shuffled(index, count, self._seed, name)
        # The first so many of an order drawn once and for all: so a smaller part lies within a larger one.
        return window if count == whole else shuffled(window, whole, 0, f"{name}/fraction")

    def held_out(self, domain: str, n: int) -> Batch:
        """Up to n windows spread evenly over a domain's held-out text, the same ones every time.

        The text's last window is filled up with padding, so a domain has at least one however little is held out.

        Returns:
          Dict of [n', T] arrays as in `batches`, n' <= n.
        """
        flat, length = self._held_out[domain], self._data.seq_len
        windows = max(-(-(len(flat) - 1) // length), 1)
        count = min(n, windows)
        tokens = np.zeros((count, length + 1), np.int32)
        filled = np.zeros(count, np.int64)
        for row, window in enumerate(np.arange(count) * windows // max(count, 1)):
            part = flat[window * length : window * length + length + 1]
            tokens[row, : len(part)] = part
            filled[row] = len(part)
        return self._pack(tokens, filled)

    def _pack(self, tokens: np.ndarray, filled: np.ndarray | None = None) -> Batch:
        """Windows of T+1 tokens as model input.

        Args:
          tokens: int32 [B, T+1].
          filled: tokens of each row that are no padding; None: all.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        time = np.arange(inputs.shape[1], dtype=np.int32)
        opens = inputs == self.tokenizer.separator
        if not self._data.mask_documents:
            opens = np.zeros_like(opens)
        # A window that begins inside a document has it as its segment 1. Positions count from where a document or the
        # window begins: attention sees no further back, and no position is beyond the length the model was made for.
        segments = np.cumsum(opens, axis=1, dtype=np.int32) + ~opens[:, :1]
        positions = time - np.maximum.accumulate(np.where(opens, time, 0), axis=1)
        counts = np.ones(inputs.shape, bool) if filled is None else time < filled[:, None] - 1
        return {
            "tokens": np.where(counts, inputs, 0).astype(np.int32),
            "targets": np.where(counts, targets, 0).astype(np.int32),
            "segments": np.where(counts, segments, 0).astype(np.int32),
            "positions": np.where(counts, positions, 0).astype(np.int32),
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


def _check_lengths(names: tuple[str, ...], train: list[np.ndarray], windows: list[int], length: int) -> None:
    problems = [
        f"domain '{name}' has {len(tokens)} training tokens, less than one sequence (data.seq_len + 1 = {length + 1}); "
        "give more text, a smaller seq_len or weight 0"
        for name, tokens, count in zip(names, train, windows, strict=True)
        if count < 1
    ]
    if problems:
        raise BadInputError(*problems)
