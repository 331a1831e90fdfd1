import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blobjax.config import Config
from blobjax.data import Prepared, prepare


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A config whose tokens are kept in this test's folder; `vocab_size` is the model's, the rest is `data`."""

    def make(vocab_size: int = 256, seed: int = 0, **data) -> Config:
        data = {"prepared_dir": str(tmp_path / "prepared"), "seq_len": 32, **data}
        return Config.model_validate({"seed": seed, "model": {"vocab_size": vocab_size}, "data": data})

    return make


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, texts: list[str], field: str = "text") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
        return path

    return write


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> tuple[Config, Prepared]:
    """The embedded corpus under the byte tokenizer: three trained domains and one that is only evaluated."""
    config = Config.model_validate(
        {
            "data": {
                "prepared_dir": str(tmp_path_factory.mktemp("prepared")),
                "mixture": {"shakespeare": 0.6, "bible": 0.2, "mathematics": 0.2, "jargon": 0},
                "seq_len": 64,
            }
        }
    )
    return config, prepare(config)
