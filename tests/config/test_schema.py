import pytest
from pydantic import ValidationError

from blobjax.config import Config
from blobjax.config.schema import Section


def sections() -> list[type[Section]]:
    found, todo = [], [Section]
    while todo:
        todo += (subclasses := todo.pop().__subclasses__())
        found += subclasses
    return found


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_says_what_it_means(section):
    for name, field in section.model_fields.items():
        if section is not Config or name in ("name", "seed"):
            assert field.description, f"{section.__name__}.{name} has no docstring"


def test_a_config_is_frozen():
    config = Config()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.model.n_layers = 1
