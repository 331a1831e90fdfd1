"""An option given twice is refused by every command: the last would win without a word."""

import pytest
import typer

from blobjax.cli.commands import app
from blobjax.config import BadInputError


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ROOT = typer.main.get_command(app)
OPTIONS = {
    (*path, max(option.opts, key=len)): option
    for path, command in commands(ROOT)
    for option in command.params
    if option.param_type_name == "option" and not option.is_flag
}


@pytest.mark.smoke
@pytest.mark.parametrize("given", [each for each, option in OPTIONS.items() if not option.multiple], ids=" ".join)
def test_an_option_given_twice_is_refused(given):
    *path, option = given
    with pytest.raises(BadInputError, match=f"^{option}: is given twice; give it once$"):
        ROOT.main([*path, option, "1", option, "2"], standalone_mode=False)


def test_options_that_collect_values_are_not(capsys):
    assert {given for given, option in OPTIONS.items() if option.multiple} == {
        ("laws", "fit", "--col"),
        ("laws", "fit", "--fix"),
        ("laws", "predict", "--at"),
        ("study", "run", "--slurm"),
    }
    with pytest.raises(BadInputError, match="nowhere"):
        ROOT.main(["laws", "predict", "nowhere.json", "--at", "a=1", "--at", "b=1"], standalone_mode=False)
