"""Examples: a prompt and its answer, of which only the answer is learned.

A JSON object is one example: `{"prompt": …, "answer": …}`, or `{"messages": [{"role": …, "content": …}, …]}`, in which
every message of the role `assistant` is an answer. Messages are written as lines `user: …`; an answer follows
`assistant: `. Every answer ends with the separator, which is learned too: it is how a model says that it is done.
"""

from typing import Any, NamedTuple

import numpy as np

from blobjax.config import BadInputError

ROLES = ("system", "user", "assistant")
# Bits of an example's marks, one byte for each of its tokens.
COUNTS, OPENS = 1, 2


class Piece(NamedTuple):
    """A part of an example.

    Attributes:
      text: the part.
      learned: whether it is an answer.
    """

    text: str
    learned: bool


def pieces_of(content: Any, where: str) -> list[Piece]:
    """The pieces of an example, of which the last is an answer.

    Args:
      content: what the JSON says.
      where: file and line, for errors.

    Raises:
      BadInputError: it is no example.
    """
    if not isinstance(content, dict) or not ("messages" in content or {"prompt", "answer"} <= content.keys()):
        raise BadInputError(f"{where}: expected a JSON object with 'prompt' and 'answer', or with 'messages'")
    if "messages" not in content:
        texts = [content[name] for name in ("prompt", "answer")]
        if not all(isinstance(text, str) for text in texts) or not texts[1]:
            raise BadInputError(f"{where}: 'prompt' and 'answer' must be text, and the answer not empty")
        return [Piece(texts[0], False), Piece(texts[1], True)]
    return _conversation(content["messages"], where)


def _conversation(messages: Any, where: str) -> list[Piece]:
    pieces, lines = [], ""
    for message in messages if isinstance(messages, list) else [None]:
        role, text = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if role not in ROLES or not isinstance(text, str):
            raise BadInputError(
                f"{where}: 'messages' must be a list of objects with text as 'content' and a 'role': {', '.join(ROLES)}"
            )
        if role != "assistant":
            lines += f"{role}: {text}\n"
        elif not text:
            raise BadInputError(f"{where}: an answer in 'messages' is empty")
        else:
            pieces += [Piece(f"{lines}assistant: ", False), Piece(text, True)]
            lines = ""
    if not pieces:
        raise BadInputError(f"{where}: 'messages' has no message of the role assistant, so there is nothing to learn")
    return pieces


def assemble(pieces: list[Piece], ids: list[np.ndarray], separator: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of an example, and a mark for each.

    Args:
      ids: the tokens of each piece.

    Returns:
      Tokens, of which the first is the separator, and marks, uint8: OPENS at the first, and COUNTS where the token
      after it is learned. After the last comes a separator, which is learned.
    """
    end = np.array([separator])
    tokens, learned = [end], [np.zeros(1, bool)]
    for n, (piece, own) in enumerate(zip(pieces, ids, strict=True)):
        tokens.append(own)
        learned.append(np.full(len(own), piece.learned))
        if piece.learned and n + 1 < len(pieces):
            tokens.append(end)
            learned.append(np.ones(1, bool))
    after = np.append(np.concatenate(learned)[1:], True)
    marks = after * np.uint8(COUNTS)
    marks[0] |= OPENS
    return np.concatenate(tokens), marks.astype(np.uint8)
