import pytest
from pydantic import ValidationError

from blobjax.config import Config, load
from blobjax.config.load import shipped
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


@pytest.mark.parametrize("name", shipped())
def test_what_was_derived_is_derived_again(name):
    config = load(name)
    said = config.model_dump(mode="json", exclude=config.derived())
    assert Config.model_validate(said) == config


def test_what_was_given_is_no_derived_value():
    given = Config.model_validate(
        {"model": {"d_model": 64, "n_heads": 4, "d_head": 32}, "compute": {"mesh": {"fsdp": -1}}}
    )
    assert "d_head" not in given.derived()["model"]
    assert given.derived()["model"]["d_ff"]
    assert given.derived()["compute"] == {"mesh": {"data": True}}
