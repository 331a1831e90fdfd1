"""Points are read from wherever they are, and whatever is wrong with them is one clear line."""

import json
import os

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.laws.formulas import LAWS
from blobjax.laws.points import choose
from blobjax.laws.tables import read
from tests.laws.synthetic import BESIROGLU, isoflops, sizes_and_tokens, with_noise, write_csv

LAW = LAWS["chinchilla-3"]


@pytest.fixture
def x():
    return with_noise("chinchilla-3", BESIROGLU, sizes_and_tokens(4, 4), 0.01)


def chosen(path, law=LAW, named=None, **options):
    return choose(law, read([str(path)]), named or {}, **options)


def refused(path, law=LAW, named=None, **options) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        chosen(path, law, named, **options)
    return list(caught.value.problems)


def test_a_table_is_the_same_as_csv_and_jsonl(tmp_path, x):
    write_csv(tmp_path / "a.csv", x)
    rows = [dict(zip(x, row, strict=True)) for row in zip(*(column.tolist() for column in x.values()), strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first, second = chosen(tmp_path / "a.csv"), chosen(tmp_path / "a.jsonl")
    assert first.sha256 == second.sha256
    assert all(np.array_equal(first.columns[name], x[name]) for name in x)


def test_the_hash_is_of_the_numbers(tmp_path, x):
    write_csv(tmp_path / "a.csv", x)
    before = chosen(tmp_path / "a.csv").sha256
    x["loss"][3] = np.nextafter(x["loss"][3], 10)
    write_csv(tmp_path / "a.csv", x)
    assert chosen(tmp_path / "a.csv").sha256 != before


def test_columns_by_other_names(tmp_path, x):
    """As digitised points of a figure come: without tokens, with names of their own and one more column."""
    del x["tokens"]
    names = {"params": "Model Size", "flops": "Training FLOP", "loss": "loss"}
    renamed = {names[name]: column for name, column in x.items()} | {"colour": x["loss"]}
    write_csv(tmp_path / "a.csv", renamed)
    points = chosen(tmp_path / "a.csv", named={"params": "Model Size", "flops": "Training FLOP"})
    assert points.columns["tokens"] == pytest.approx(x["flops"] / 6 / x["params"])
    assert points.counted["tokens"] == "flops / (6 × params)"
    assert "Model Size" in points.counted["params"]
    assert "not recorded" in points.counted["params"]


def test_what_is_derived_is_said(tmp_path, x):
    del x["flops"]
    write_csv(tmp_path / "a.csv", x)
    points = chosen(tmp_path / "a.csv", counted="params without embeddings")
    assert points.columns["flops"] == pytest.approx(6 * x["params"] * x["tokens"])
    assert "no attention" in points.counted["flops"]
    assert points.counted["as said"] == "params without embeddings"


def test_flops_that_count_more_are_told(tmp_path, x):
    x["flops"] = x["flops"] * np.linspace(1.1, 1.3, 16)
    write_csv(tmp_path / "a.csv", x)
    assert "1.1 to 1.3 times 6 × params × tokens" in chosen(tmp_path / "a.csv").counted["flops"]


def test_over_training_from_params_and_tokens(tmp_path, x):
    write_csv(tmp_path / "a.csv", {name: x[name] for name in ("params", "tokens", "loss")})
    points = chosen(tmp_path / "a.csv", LAWS["over-training"])
    assert points.columns["overtraining"] == pytest.approx(x["tokens"] / x["params"])
    assert points.columns["flops"] == pytest.approx(6 * x["params"] * x["tokens"])


def test_the_highest_losses_are_dropped(tmp_path, x):
    write_csv(tmp_path / "a.csv", x)
    points = chosen(tmp_path / "a.csv", drop_highest_loss=3)
    assert points.dropped == {"highest loss": 3}
    assert sorted(points.columns["loss"]) == sorted(x["loss"])[:-3]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "a.csv:5: loss is missing or NaN; remove the row, or give --drop-missing"),
        (0.0, "a.csv:5: loss is 0, and must be more than 0"),
        (-2.0, "a.csv:5: loss is -2, and must be more than 0"),
        (np.inf, "a.csv:5: loss is infinite"),
    ],
)
def test_a_loss_that_is_none_is_refused_with_its_line(tmp_path, x, value, said):
    x["loss"][3] = value
    write_csv(tmp_path / "a.csv", x)
    (line,) = refused(tmp_path / "a.csv")
    assert said in line


def test_a_size_of_zero_is_refused(tmp_path, x):
    x["params"][3] = 0
    write_csv(tmp_path / "a.csv", x)
    assert "a.csv:5: params is 0" in refused(tmp_path / "a.csv")[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_a_size_that_overflows_is_refused(tmp_path, x, value):
    x["params"][3] = x["tokens"][3] = value
    del x["flops"]
    write_csv(tmp_path / "a.csv", x)
    lines = refused(tmp_path / "a.csv")
    assert f"a.csv:5: params is {value:g}, and a law takes 1e-50 to 1e+50" in lines[0]


def test_a_reward_may_be_zero_or_less(tmp_path):
    write_csv(tmp_path / "a.csv", {"flops": np.arange(1.0, 8), "reward": np.arange(-3.0, 4)})
    assert len(chosen(tmp_path / "a.csv", LAWS["rl-compute"]).columns["reward"]) == 7


@pytest.mark.parametrize("name", ["rl-compute", "rl-log-linear"])
def test_a_curve_of_rewards_begins_at_no_compute(tmp_path, name):
    x = {"flops": np.array([0.0, 0.0, *np.geomspace(1e2, 1e5, 10)]), "reward": np.array([0.2, 0.21, *np.arange(10.0)])}
    write_csv(tmp_path / "a.csv", x)
    points = chosen(tmp_path / "a.csv", LAWS[name])
    if name == "rl-compute":
        assert np.array_equal(points.columns["flops"], x["flops"])
    else:  # a line in the logarithm has no value there
        assert len(points.columns["flops"]) == 10
        assert points.dropped == {"before training": 2}
        assert points.notes == ("2 points at flops = 0 are left out: rl-log-linear has no value there",)
    assert "a.csv:2: flops is 0, and must be more than 0" in refused(tmp_path / "a.csv", LAWS["power-flops"],
                                                                     {"loss": "reward"})[0]  # fmt: skip


def test_missing_cells_are_dropped_when_asked(tmp_path, x):
    x["loss"][[2, 5]] = np.nan
    write_csv(tmp_path / "a.csv", x)
    text = (tmp_path / "a.csv").read_text().replace(",nan\n", ",\n", 1)
    (tmp_path / "a.csv").write_text(text)
    points = chosen(tmp_path / "a.csv", drop_missing=True)
    assert points.dropped == {"missing": 2}
    assert len(points.columns["loss"]) == 14


def test_rows_that_stand_twice(tmp_path, x):
    doubled = {name: np.append(column, column[[1, 4]]) for name, column in x.items()}
    write_csv(tmp_path / "a.csv", doubled)
    first, second = refused(tmp_path / "a.csv")
    assert "a.csv:18: the same row as" in first
    assert "a.csv:3; remove one of each pair, or give --drop-duplicates" in first
    assert "a.csv:6" in second
    points = chosen(tmp_path / "a.csv", drop_duplicates=True)
    assert points.dropped == {"duplicates": 2}
    assert np.array_equal(points.columns["loss"], x["loss"])


def test_runs_that_begin_alike_share_points_of_their_curves(tmp_path, x):
    doubled = {name: np.append(column, column[[1, 4]]) for name, column in x.items()}
    write_csv(tmp_path / "a.csv", doubled)
    points = chosen(tmp_path / "a.csv", LAWS["chinchilla-1"])
    assert np.array_equal(points.columns["loss"], x["loss"])
    assert points.dropped == {"duplicates": 2}
    assert "2 points of training curves stand twice and count once" in points.notes[-1]


def test_another_seed_is_no_duplicate(tmp_path, x):
    other = {**x, "loss": x["loss"] * 1.001}
    write_csv(tmp_path / "a.csv", {name: np.append(column, other[name]) for name, column in x.items()})
    assert len(chosen(tmp_path / "a.csv").columns["loss"]) == 32


def test_all_that_is_wrong_in_a_row_is_told(tmp_path, x):
    """What follows from a wrong cell is not told as well."""
    del x["tokens"]
    write_csv(tmp_path / "a.csv", x)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    lines[3] = "7B,1_0,-2"
    lines[5] = ",1e18,0"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    told = [line.removeprefix(f"{tmp_path}/a.csv:").partition(";")[0] for line in refused(tmp_path / "a.csv")]
    assert told == [
        "4: params is '7B', not a number",
        "4: flops is '1_0', not a number",
        "4: loss is -2, and must be more than 0",
        "6: params is missing or NaN",
        "6: tokens is missing or NaN",
        "and 1 more of the kind",
    ]
    # A row that is dropped is not asked about.
    assert len(refused(tmp_path / "a.csv", drop_missing=True)) == 3


def test_many_problems_are_told_shortly(tmp_path, x):
    x["loss"][:] = -1
    write_csv(tmp_path / "a.csv", x)
    lines = refused(tmp_path / "a.csv")
    assert len(lines) == 6
    assert lines[-1] == "and 11 more of the kind"


@pytest.mark.parametrize("first", ["sep=,", '"sep=,"', "SEP=,"])
def test_a_line_that_names_the_separator_is_left_out(tmp_path, x, first):
    write_csv(tmp_path / "a.csv", x)
    (tmp_path / "a.csv").write_text(first + "\n" + (tmp_path / "a.csv").read_text())
    table = read([str(tmp_path / "a.csv")])
    assert len(table.rows) == 16
    assert table.rows[0].place.endswith("a.csv:3")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sep=;\nparams;tokens;loss\n1;2;3\n", "its columns are separated by semicolons; write the table with commas"),
        ("sep=\t\nparams\ttokens\tloss\n", "its columns are separated by tabs; write the table with commas"),
        ("sep=|\nparams|tokens|loss\n", "its columns are separated by '|'; write the table with commas"),
        # All that follows would be one cell.
        ('params,tokens,loss\n1,2,3\n1,2,"3\n2,3,4\n', "a.csv:3: a quote is opened here and never closed"),
        ('params,tokens,loss\n1,2,3\n\n1,"2,3', "a.csv:4: a quote is opened here and never closed"),
        ('params,"tokens,loss\n1,2,3\n', "a.csv:1: a quote is opened here and never closed"),
        ("params,tokens,los\n1,2,3\n", "needs a column 'loss'; did you mean 'los'?"),
        ("Model Size,D,L\n1,2,3\n", "needs a column 'params'; known: Model Size, D, L. Give --col params=COLUMN"),
        ("params,tokens,loss\n1,two,3\n", "a.csv:2: tokens is 'two', not a number"),
        ("params,tokens,loss\n1,1_000,3\n", "a.csv:2: tokens is '1_000', not a number"),
        ("params,tokens,loss\n1,٣,3\n", "a.csv:2: tokens is '٣', not a number"),
        ("params,tokens,loss\n", "holds no points"),
        ("", "holds no points"),
        ("params,params,loss\n1,2,3\n", "column 'params' is in the header twice; rename one of them"),
        ("params,tokens,loss\n1,2,3,4\n", "a.csv:2: more cells than the header"),
        # An index column, and numbers with commas outside of quotes: each row would be read a cell off.
        (",params,tokens,loss\n0,3,299,137,2.5\n", "a.csv:2: more cells than the header has names, 5 and 4"),
        ("params;tokens;loss\n1;2;3\n", "separated by semicolons; write the table with commas"),
        ('params,tokens,loss\n1,2,"3,299"\n', "a.csv:2: loss is '3,299': thousands, or a decimal comma?"),
    ],
)
def test_a_table_that_is_none(tmp_path, content, said):
    (tmp_path / "a.csv").write_text(content)
    assert said in " ".join(refused(tmp_path / "a.csv"))


def test_a_table_as_spreadsheets_leave_it(tmp_path, x):
    """Remarks and blank lines above, thousands in quotes, an index, empty columns at the end, a name in capitals."""
    x = {name: x[name].round() if name != "loss" else x[name] for name in ("params", "tokens", "loss")}
    table = zip(*(column.tolist() for column in x.values()), strict=True)
    rows = [f'{i},"{n:,.0f}","{d:,.0f}",{loss!r},,' for i, (n, d, loss) in enumerate(table)]
    (tmp_path / "A.CSV").write_text("\n".join(["", "# read off figure 4", ",params,tokens,loss,,", *rows, ""]))
    points = chosen(tmp_path / "A.CSV")
    assert all(np.array_equal(points.columns[name], x[name]) for name in x)


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "None", "-", "", "#N/A", "#DIV/0!", "#VALUE!"])
def test_words_for_a_missing_cell(tmp_path, x, word):
    write_csv(tmp_path / "a.csv", x)
    text = (tmp_path / "a.csv").read_text().replace(repr(x["loss"][3].item()), word)
    (tmp_path / "a.csv").write_text(text)
    assert "a.csv:5: loss is missing or NaN" in refused(tmp_path / "a.csv")[0]
    assert chosen(tmp_path / "a.csv", drop_missing=True).dropped == {"missing": 1}


def test_a_footer_is_a_row_with_empty_cells(tmp_path, x):
    """Its first cell is no number, but an empty one is enough to leave it out."""
    write_csv(tmp_path / "a.csv", x)
    with (tmp_path / "a.csv").open("a") as file:
        file.write("Average,,,2.9\n,,,\nmade with a spreadsheet\n")
    assert "a.csv:18: params is 'Average', not a number" in refused(tmp_path / "a.csv")[0]
    points = chosen(tmp_path / "a.csv", drop_missing=True)
    assert points.dropped == {"missing": 3}
    assert np.array_equal(points.columns["loss"], x["loss"])


def test_a_row_that_begins_with_a_spreadsheets_error_is_no_remark(tmp_path, x):
    write_csv(tmp_path / "a.csv", x)
    with (tmp_path / "a.csv").open("a") as file:
        file.write("#DIV/0!,1e9,3.0,6e18\n# a remark\n")
    assert "a.csv:18: params is missing" in refused(tmp_path / "a.csv")[0]
    assert chosen(tmp_path / "a.csv", drop_missing=True).dropped == {"missing": 1}


def test_a_footer_where_tokens_follow_from_what_is_empty(tmp_path, x):
    del x["tokens"]
    write_csv(tmp_path / "a.csv", {name: x[name] for name in ("params", "flops", "loss")})
    with (tmp_path / "a.csv").open("a") as file:
        file.write("Average,,2.9\n")
    assert len(chosen(tmp_path / "a.csv", drop_missing=True).columns["loss"]) == 16
    # A cell that is wrong is not empty.
    with (tmp_path / "a.csv").open("a") as file:
        file.write("7B,1e20,2.9\n")
    (line,) = refused(tmp_path / "a.csv", drop_missing=True)
    assert line == f"{tmp_path}/a.csv:19: params is '7B', not a number"


def test_names_of_columns_in_capitals(tmp_path, x):
    write_csv(tmp_path / "a.csv", {"Params": x["params"], "TOKENS": x["tokens"], "Loss": x["loss"]})
    points = chosen(tmp_path / "a.csv")
    assert np.array_equal(points.columns["tokens"], x["tokens"])
    assert points.counted["tokens"] == "column 'TOKENS'"
    # Where several would do, the very name is taken, and without it none.
    write_csv(tmp_path / "b.csv", {**x, "LOSS": x["params"]})
    assert np.array_equal(chosen(tmp_path / "b.csv").columns["loss"], x["loss"])
    write_csv(tmp_path / "c.csv", {"params": x["params"], "tokens": x["tokens"], "Loss": x["loss"], "LOSS": x["loss"]})
    (line,) = refused(tmp_path / "c.csv")
    assert line == "columns 'Loss' and 'LOSS' could each be loss; give --col loss=COLUMN"


def test_a_name_that_two_columns_have_is_refused_only_where_it_is_used(tmp_path, x):
    write_csv(tmp_path / "a.csv", {**x, "seed": x["params"], "Seed": x["params"]})
    text = (tmp_path / "a.csv").read_text().replace("Seed", "seed", 1)
    (tmp_path / "a.csv").write_text(text)
    assert len(chosen(tmp_path / "a.csv").columns["loss"]) == 16
    assert "column 'seed' is in the header twice" in refused(tmp_path / "a.csv", named={"params": "seed"})[0]


def test_nothing_left_is_said(tmp_path, x):
    x["loss"][:] = np.nan
    write_csv(tmp_path / "a.csv", x)
    (line,) = refused(tmp_path / "a.csv", drop_missing=True)
    assert line == "--drop-missing leaves none of 16 rows: loss is missing in all of them"


@pytest.mark.parametrize("drop_missing", [False, True])
def test_a_column_that_only_may_be_used_costs_no_rows(tmp_path, x, drop_missing):
    x["flops"] = x["flops"] * np.where(np.arange(16) % 2, np.nan, 1.2)
    write_csv(tmp_path / "a.csv", x)
    points = chosen(tmp_path / "a.csv", drop_missing=drop_missing)
    assert points.dropped == {}
    # Half of the rows counted in one way and half in another would be neither.
    assert points.columns["flops"] == pytest.approx(6 * x["params"] * x["tokens"])
    assert (
        "'flops' is missing in 8 rows that have all else: all rows take 6 × params × tokens instead" in points.notes[0]
    )


def test_what_is_not_used_need_not_be_a_number(tmp_path):
    write_csv(tmp_path / "a.csv", {"flops": np.geomspace(1e17, 1e20, 8), "loss": np.linspace(3, 2, 8)})
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join([lines[0] + ",params", *(f"{line},7B" for line in lines[1:])]))
    assert len(chosen(tmp_path / "a.csv", LAWS["power-flops"]).columns["loss"]) == 8


def test_other_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"params": 1}\nnot json\n')
    assert "a.jsonl:2: not JSON" in refused(tmp_path / "a.jsonl")[0]
    (tmp_path / "a.jsonl").write_text('{"params": 1}\n{"params": 1, "loss": 2, "loss": 3}\n')
    assert "a.jsonl:2: key 'loss' stands twice" in refused(tmp_path / "a.jsonl")[0]
    (tmp_path / "a.txt").write_text("")
    assert ".csv or .jsonl" in refused(tmp_path / "a.txt")[0]
    assert "cannot be read" in refused(tmp_path / "nowhere.csv")[0]
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused(tmp_path / "b.csv")[0]
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    assert "is not a regular file" in refused(tmp_path / "pipe.csv")[0]
    assert "neither the directory of a run" in refused(tmp_path / "empty")[0]


def test_a_column_named_wrongly(tmp_path, x):
    write_csv(tmp_path / "a.csv", x)
    assert "no column 'los'; did you mean 'loss'?" in refused(tmp_path / "a.csv", named={"loss": "los"})[0]
    assert "uses no 'reward'" in refused(tmp_path / "a.csv", named={"reward": "loss"})[0]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("chinchilla-3", {"flops": [1e18, 1e19]}, "2 different budgets (flops), and it takes 3"),
        ("chinchilla-2", {"flops": [1e18, 1e19]}, "2 different budgets (flops), and it takes 3"),
        ("kaplan", {"flops": [1e18, 1e19]}, "2 different budgets (flops), and it takes 3"),
    ],
)
def test_two_budgets_are_no_law(name, change, said):
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(change["flops"]), 0.01)
    assert said in LAWS[name].problems(x, {})[0]


def test_one_size_is_no_law():
    x = with_noise("chinchilla-3", BESIROGLU, sizes_and_tokens(1, 12), 0.01)
    assert "1 different params, and it takes 3" in LAW.problems(x, {})[0]


def test_tokens_that_follow_from_params_tell_nothing():
    params = np.geomspace(1e7, 1e9, 12)
    x = {"params": params, "tokens": 20 * params, "flops": 120 * params**2}
    assert "cannot be told apart" in LAW.problems(with_noise("chinchilla-3", BESIROGLU, x, 0.01), {})[0]


def test_a_loss_that_does_not_vary_is_no_law():
    x = {**sizes_and_tokens(4, 4), "loss": np.full(16, 2.5)}
    assert LAW.problems(x, {}) == ["loss is 2.5 at all points, so there is nothing to fit"]


def test_as_many_points_as_parameters_are_too_few():
    x = with_noise("chinchilla-3", BESIROGLU, isoflops(sizes=1), 0.01)
    assert "5 points for 5 free parameters; it takes at least 6" in LAW.problems(x, {})[0]
    assert "5 points" not in " ".join(LAW.problems(x, {"E": 1.7}))


def test_repetition_needs_repeated_data():
    x = sizes_and_tokens(4, 4)
    x = with_noise("data-constrained", [1.87, 521, 1488, 0.353, 15.4, 5.3], x | {"unique_tokens": x["tokens"]}, 0.0)
    assert "no point repeats its data" in LAWS["data-constrained"].problems(x, {})[0]
    x["unique_tokens"] = x["tokens"] * 2
    assert "unique_tokens are more than tokens" in LAWS["data-constrained"].problems(x, {})[0]
