"""Prompts and answers: what is learned, whole examples in rows, and one line for what is no example."""

import json
from pathlib import Path

import numpy as np
import pytest

from blobjax.config import BadInputError, Config, load
from blobjax.data import open_stream, prepare
from blobjax.data.examples import COUNTS, OPENS, assemble, pieces_of


def prompted(n: int) -> dict:
    """Examples of different lengths, each with bytes of its own."""
    return {"prompt": f"{n:02d}+1=", "answer": f"{n + 1}" + "." * (n % 7)}


@pytest.fixture
def make_config(tmp_path: Path):
    def make(objective: dict, **data):
        data = {"prepared_dir": str(tmp_path / "prepared"), **data}
        return Config.model_validate({"model": {"vocab_size": 256}, "data": data, "objective": objective})

    return make


@pytest.fixture
def make_stream(make_config, tmp_path):
    def make(examples: list, length: int = 32, long_examples: str = "error"):
        path = tmp_path / "examples.jsonl"
        content = "".join(json.dumps(each) + "\n" for each in examples)
        if not path.exists() or path.read_text() != content:  # a file that was written anew is prepared anew
            path.write_text(content)
        config = make_config(
            objective={"kind": "supervised"},
            seq_len=length,
            mixture={"sums": 1.0},
            held_out_fraction=0.2,
            sources={"sums": {"kind": "examples", "path": str(path), "long_examples": long_examples}},
        )
        return open_stream(config, prepare(config))

    return make


def text(ids) -> str:
    return bytes(int(i) for i in ids).decode()


def assembled(content: dict) -> tuple[str, str]:
    """The tokens as text, in which the separator is `|`; and below each, whether the next token is learned."""
    pieces = pieces_of(content, "here")
    tokens, marks = assemble(pieces, [np.frombuffer(p.text.encode(), np.uint8) for p in pieces], 0)
    assert (marks & OPENS).tolist() == [OPENS, *[0] * (len(marks) - 1)]
    return text(tokens).replace("\0", "|"), "".join("x" if mark & COUNTS else " " for mark in marks)


def test_an_answer_and_its_end_are_learned_and_a_prompt_is_not():
    assert assembled({"prompt": "1+1=", "answer": "42"}) == (
        "|1+1=42",
        "    xxx",
    )
    assert assembled({"prompt": "", "answer": "yes"}) == ("|yes", "xxxx")


def test_every_answer_of_a_conversation_is_learned_with_its_end():
    messages = [("system", "s"), ("user", "u"), ("assistant", "AB"), ("user", "v"), ("assistant", "C"), ("user", "w")]
    content = {"messages": [{"role": role, "content": said} for role, said in messages]}
    tokens, learned = assembled(content)
    # What comes after the last answer teaches nothing.
    assert tokens == "|system: s\nuser: u\nassistant: AB|user: v\nassistant: C"
    seen = [tokens[i + 1] if i + 1 < len(tokens) else "|" for i, mark in enumerate(learned) if mark == "x"]
    assert seen == ["A", "B", "|", "C", "|"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "p"}', "expected a JSON object with 'prompt' and 'answer', or with 'messages'"),
        ("[1]", "expected a JSON object with 'prompt' and 'answer', or with 'messages'"),
        ('{"prompt": 1, "answer": "a"}', "'prompt' and 'answer' must be text, and the answer not empty"),
        ('{"prompt": "p", "answer": ""}', "'prompt' and 'answer' must be text, and the answer not empty"),
        ('{"messages": "hello"}', "'messages' must be a list of objects"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "'messages' must be a list of objects"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no message of the role assistant"),
        ('{"messages": [{"role": "assistant", "content": ""}]}', "an answer in 'messages' is empty"),
        ('{"prompt": ', "not JSON"),
    ],
)
def test_what_is_no_example_is_one_line_with_its_place(make_config, tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(prompted(1)) + "\n" + line + "\n")
    source = {"kind": "examples", "path": str(path)}
    config = make_config({"kind": "supervised"}, mixture={"sums": 1.0}, sources={"sums": source})
    with pytest.raises(BadInputError) as error:
        prepare(config)
    (problem,) = error.value.problems
    assert problem.startswith(f"{path}:2: ")
    assert said in problem


def test_rows_hold_whole_examples_and_masked_tokens_count_nowhere(make_stream):
    stream = make_stream([prompted(n) for n in range(60)])
    rows = len(stream._train[0])
    batch = stream.sequences(list(range(rows)))
    found = []
    for row in range(rows):
        segments, tokens, mask = (batch[name][row] for name in ("segments", "tokens", "mask"))
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            whole = text(tokens[inside])
            assert whole[0] == "\0"
            assert batch["positions"][row][inside].tolist() == list(range(len(whole)))
            prompt, _, answer = whole[1:].partition("=")
            found.append({"prompt": prompt + "=", "answer": answer})
            # Exactly the answer and the end are learned, and their bytes counted.
            learned = inside & (mask == 1)
            assert text(batch["targets"][row][learned]) == answer + "\0"
            assert batch["target_bytes"][row][inside].sum() == len(answer)
        assert not mask[segments == 0].any()
        assert not batch["target_bytes"][row][segments == 0].any()
    held_out = stream.held_out("sums", 1000)
    more = int((held_out["tokens"] == ord("=")).sum())
    # Every example is in exactly one row of one split, none in pieces.
    assert len(found) + more == 60
    assert len({each["prompt"] for each in found}) == len(found)
    assert all(each in [prompted(n) for n in range(60)] for each in found)


def test_an_example_that_fits_exactly_fills_a_row(make_stream):
    stream = make_stream([{"prompt": f"{n:03d}", "answer": "abcd"} for n in range(20)], length=8)
    batch = stream.sequences([0])
    assert (batch["segments"] == 1).all()
    assert text(batch["targets"][0])[3:] == "abcd\0"


def test_what_is_too_long_is_an_error_or_skipped_and_counted(make_stream):
    examples = [prompted(n) for n in range(40)] + [{"prompt": "long", "answer": "x" * 50 + str(n)} for n in range(10)]
    with pytest.raises(BadInputError, match=r"examples are longer than data.seq_len 32, the longest 56 tokens; "):
        make_stream(examples)
    stream = make_stream(examples, long_examples="skip")
    skipped = [int(note.split("skipped ")[1].split(" ")[0]) for note in stream.notes]
    assert sum(skipped) == 10
    assert "which are longer than data.seq_len 32" in stream.notes[0]
    everything = stream.sequences(list(range(len(stream._train[0]))))
    assert not (everything["tokens"] == ord("x")).any()
    with pytest.raises(BadInputError, match=r"examples are longer than data.seq_len 4, .*; raise data.seq_len$"):
        make_stream(examples[:40], length=4, long_examples="skip")


def test_how_long_an_example_may_be_prepares_nothing_anew(make_stream, tmp_path):
    examples = [prompted(n) for n in range(40)]
    assert make_stream(examples).fingerprint == make_stream(examples, long_examples="skip").fingerprint
    assert len([each for each in (tmp_path / "prepared").iterdir() if each.is_dir()]) == 1


@pytest.mark.parametrize(
    ("kind", "sources", "said"),
    [
        ("supervised", {}, "objective.kind supervised learns answers, and domain 'shakespeare' has none"),
        ("next_token", {"shakespeare": {"kind": "examples", "path": "x"}}, "is for objective.kind supervised"),
    ],
)
def test_data_and_objective_must_go_together(tmp_path, kind, sources, said):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"objective": {"kind": kind}, "data": {"sources": sources}}))
    with pytest.raises(BadInputError, match=said):
        load(str(path))
