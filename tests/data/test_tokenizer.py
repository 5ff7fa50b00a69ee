"""The tokenizer as transformers loads it, and the arrays made with it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from transformers import AutoTokenizer

from workbench.data.token_arrays import encode_documents, read_tokens, split_newlines, write_tokens
from workbench.data.tokenizer_training import SPECIAL_TOKENS, load_tokenizer

CODE = "def f(n):\n    if n > 10:\n        return  n  # ten\n\n\nclass A:\n    pass\n"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return AutoTokenizer.from_pretrained(tokenizer_folder)


def test_special_tokens_have_the_first_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(16))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 1024
    assert tokenizer.model_max_length == 2048


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        "",
        " leading\ttab \r\n",
        "naïve 中文 🎉 \x00",
        "".join(map(chr, range(1, 0x2FF))),
        "a  .  b ,  c 's",
    ],
)
def test_any_text_survives(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == 1
    assert tokenizer.decode(ids[1:]) == text


def test_newline_with_indentation_is_one_token_and_digits_stand_alone(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer(CODE).input_ids]
    assert "\n    " in pieces
    assert "\n        " in pieces
    assert [piece.strip() for piece in pieces if piece.strip().isdigit()] == ["1", "0"]


def test_chat_template(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<bos><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_documents_become_one_array(tokenizer_folder, tmp_path):
    texts = [CODE, "x = '<eos>'\n", "y = 2\n"]
    with ThreadPoolExecutor(2) as executor:
        tokens, lengths = encode_documents(texts, tokenizer_folder, executor)
    assert tokens.tolist().count(1) == tokens.tolist().count(2) == 3, "text is never special"
    assert sum(lengths) == len(tokens)
    write_tokens(tokens, tmp_path / "t.bin")
    assert np.array_equal(read_tokens(tmp_path / "t.bin"), tokens)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_split_newlines_keeps_the_text(tokenizer_folder, share):
    tokenizer = load_tokenizer(tokenizer_folder)
    tokens = np.array(tokenizer.encode(CODE * 20).ids, np.uint16)
    spread = split_newlines(tokens, tokenizer, share, seed=0)
    assert tokenizer.decode(spread.tolist()) == CODE * 20
    newline, indented = tokenizer.token_to_id("Ċ"), tokenizer.token_to_id("ĊĠĠĠĠ")
    bare = int((spread == newline).sum()) - int((tokens == newline).sum())
    left = int((spread == indented).sum())
    assert (bare == 0) if share == 0 else (bare > 0)
    assert (left == 0) is (share == 1.0)
