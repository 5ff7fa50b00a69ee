"""The tokenizer and its text stream: pieces add up to the whole, stop strings are cut in time."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import BUILDERS, CHAT_TEMPLATE, SPECIAL, TEXTS, byte_level, save, wrap

from workbench.errors import CheckpointError, RequestError
from workbench.models.detokenize import MAX_PENDING_TOKENS, REPLACEMENT, WindowStream
from workbench.models.text_stream import IncrementalText
from workbench.models.tokenizer import Tokenizer
from workbench.sampling_params import SamplingParams

TOKENIZERS = {name: Tokenizer(wrap(build())) for name, build in BUILDERS.items()}
BYTES = TOKENIZERS["byte_level"]
ALL = pytest.mark.parametrize("name", list(TOKENIZERS))

# Families, flags and skin tones join several code points; combining marks stand alone.
PIECES = st.sampled_from(
    [
        *(
            "👩‍🚀",
            "👨‍👩‍👧‍👦",
            "🇯🇵",
            "👍🏽",
            "e\u0301",
            "n\u0303\u0331",
            "日本語",
            "한국",
            "العربية",
        ),
        *(" ", "  ", "\n    ", "\t", "▁", "\u200b", "\0", "<s>", "</s>", "<tool→>"),
        *("def f(x):\n    return x", "self.items", "hello world"),
    ]
)
TEXT = st.lists(PIECES | st.text(max_size=6), max_size=12).map("".join)


def streamed(text: IncrementalText, token_ids: list[int]) -> list[str]:
    """Push every token and finish; return what `take` gave after each."""
    taken = []
    for token_id in token_ids:
        assert text.push(token_id) is None
        taken.append(text.take())
    text.finish()
    return [*taken, text.take()]


@ALL
@settings(max_examples=120, deadline=None)
@given(text=TEXT)
def test_pieces_of_a_text_add_up_to_its_decode(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = streamed(stream, ids)
    assert "".join(pieces) == stream.text == tokenizer.decode(ids)
    if REPLACEMENT not in text:
        assert REPLACEMENT not in stream.text, "half a character came out"


@ALL
@settings(max_examples=80, deadline=None)
@given(prompt=TEXT, answer=TEXT)
def test_text_after_a_prompt_continues_it(name: str, prompt: str, answer: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.hf.encode(answer, add_special_tokens=False)
    text = "".join(streamed(tokenizer.stream(prompt_ids), ids))
    assert tokenizer.decode(prompt_ids) + text == tokenizer.decode([*prompt_ids, *ids])


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, BYTES.vocab_size + 3), max_size=40))
def test_any_ids_of_a_byte_level_vocabulary(ids: list[int]) -> None:
    """Bytes that are no text, special tokens amid a character, ids that no token has."""
    stream = BYTES.stream()
    assert "".join(streamed(stream, ids)) == stream.text == BYTES.decode(ids)


@pytest.mark.parametrize("name", ["byte_fallback", "byte_fallback_unstripped", "metaspace"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_ids_of_other_vocabularies(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = tokenizer.stream()
    whole = tokenizer.decode(ids)
    assert "".join(streamed(stream, ids)) == stream.text
    # A whole decode replaces every byte of a run with a fault; the stream keeps what was right.
    if REPLACEMENT not in whole:
        assert stream.text == whole
    else:
        assert stream.text.replace(REPLACEMENT, "").endswith(whole.rpartition(REPLACEMENT)[2])


@ALL
def test_the_window_also_serves_byte_level_vocabularies(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    special = frozenset(tokenizer.hf.all_special_ids)
    for text in [*TEXTS, "👩‍🚀 naïve 日本", "a" + REPLACEMENT + "b"]:
        ids = tokenizer.encode(text)
        stream = IncrementalText(WindowStream(tokenizer.decode, special))
        assert "".join(streamed(stream, ids)) == tokenizer.decode(ids)


def test_a_character_comes_out_with_its_last_byte() -> None:
    ids = BYTES.encode("a🚀b")
    pieces = streamed(BYTES.stream(), ids)
    assert [piece for piece in pieces if piece] == ["a", "🚀", "b"]
    assert len(ids) == 6


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_finish_shows_an_incomplete_character_as_a_full_decode_does(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("the 🚀")[:-1]
    stream = tokenizer.stream()
    pieces = streamed(stream, ids)
    assert REPLACEMENT not in "".join(pieces[:-1])
    assert pieces[-1].startswith(REPLACEMENT)
    assert stream.text == tokenizer.decode(ids)
    stream.finish()
    assert stream.take() == ""


def test_a_prompt_that_ends_inside_a_character() -> None:
    ids = BYTES.encode("日🚀!")
    for cut in range(len(ids)):
        text = "".join(streamed(BYTES.stream(ids[:cut]), ids[cut:]))
        assert text in ("日🚀!", "🚀!", "!")


def test_a_leading_space_is_kept_after_a_prompt_and_only_then() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    world = tokenizer.hf.encode("world", add_special_tokens=False)
    assert tokenizer.decode(world) == "world"
    assert "".join(streamed(tokenizer.stream(), world)) == "world"
    assert "".join(streamed(tokenizer.stream(tokenizer.encode("hello")), world)) == " world"
    assert "".join(streamed(tokenizer.stream(tokenizer.encode("")[:1]), world)) == "world"


def test_endless_bytes_that_are_no_text_neither_stall_nor_slow_down() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    byte = tokenizer.hf.convert_tokens_to_ids("<0x9F>")
    lengths = []

    def decode(ids: list[int]) -> str:
        lengths.append(len(ids))
        return tokenizer.decode(ids)

    stream = IncrementalText(WindowStream(decode, frozenset()))
    pieces = streamed(stream, [byte] * 1000)
    assert "".join(pieces) == REPLACEMENT * 1000
    assert max(lengths) <= 2 * MAX_PENDING_TOKENS


# --- stop strings -------------------------------------------------------------------------------


def definition(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Read character by character until a stop string is complete."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


SHORT = st.text("ab日🚀 \n", min_size=1, max_size=5)


@ALL
@settings(max_examples=150, deadline=None)
@given(
    text=st.text("ab日🚀 \n", max_size=30),
    stops=st.lists(SHORT, min_size=1, max_size=4),
    include=st.booleans(),
)
def test_stop_strings_equal_their_definition(
    name: str, text: str, stops: list[str], include: bool
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    expected, expected_stop = definition(tokenizer.decode(ids), stops, include)
    stream = tokenizer.stream((), SamplingParams(stop=tuple(stops), include_stop_str=include))
    found, shown = None, ""
    for token_id in ids:
        found = stream.push(token_id)
        shown += stream.take()
        assert expected.startswith(shown), "text was shown that had to be taken back"
        if found is not None:
            break
    stream.finish()
    assert (stream.text, found) == (expected, expected_stop)
    assert shown + stream.take() == expected


def test_a_stop_string_over_tokens_and_characters() -> None:
    stream = BYTES.stream((), SamplingParams(stop=("d日🚀",)))
    ids = BYTES.encode("abcd日🚀 tail")
    results = []
    for token_id in ids:
        results.append(stream.push(token_id))
        if results[-1]:
            break
        assert set(stream.take()) <= set("abc")
    assert results[-1] == "d日🚀"
    assert len(results) > 5
    assert stream.text == "abc"
    with pytest.raises(AssertionError):
        stream.push(ids[0])


def test_text_that_only_looked_like_a_stop_string_is_shown_after_all() -> None:
    stream = BYTES.stream((), SamplingParams(stop=("\n\nclass", "\n\n\n")))
    ids = BYTES.encode("x\n\nclaim")
    assert "".join(streamed(stream, ids)) == "x\n\nclaim"
    held = BYTES.stream((), SamplingParams(stop="abc"))
    for token_id in BYTES.encode("xab"):
        held.push(token_id)
    assert (held.take(), held.text) == ("x", "xab")
    held.finish()
    assert held.take() == "ab"


# --- copies -------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("copier", [copy.deepcopy, IncrementalText.copy], ids=["deepcopy", "copy"])
def test_copies_go_their_own_way(
    name: str, copier: Callable[[IncrementalText], IncrementalText]
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("hello 🚀 日本 the world, the end")
    expected, _ = definition(tokenizer.decode(ids), ["ld"], include=False)
    others = list(range(len(SPECIAL), tokenizer.vocab_size))
    for cut in range(len(ids)):
        original = tokenizer.stream((), SamplingParams(stop="ld"))
        if any(original.push(token_id) for token_id in ids[:cut]):
            break
        shown, twin = original.take(), copier(original)
        any(original.push(token_id) for token_id in random.Random(cut).sample(others, 9))
        any(twin.push(token_id) for token_id in ids[cut:])
        twin.finish()
        assert twin.text == expected
        assert shown + twin.take() == expected
    assert cut > 5


# --- loading, encoding, chat --------------------------------------------------------------------


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == BYTES.vocab_size
    assert tokenizer.eos_token_ids == (1, 7)
    for text in TEXTS:
        assert tokenizer.encode(text) == BYTES.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert f"vocab_size={tokenizer.vocab_size}" in repr(tokenizer)


def test_bos_as_the_tokenizer_says() -> None:
    assert TOKENIZERS["byte_fallback"].encode("hello")[0] == 0
    assert BYTES.encode("hello")[0] != 0


def test_special_tokens_are_shown_on_request() -> None:
    ids = [0, *BYTES.encode("x"), 1]
    assert BYTES.decode(ids) == "x"
    assert BYTES.decode(ids, skip_special=False) == "<s>x</s>"


def test_chat_writes_the_template_and_opens_the_answer() -> None:
    ids = BYTES.chat([{"role": "user", "content": "hello"}])
    assert ids == [2, *BYTES.encode("hello"), 3]
    assert BYTES.decode(ids, skip_special=False) == "<|user|>hello<|assistant|>"


def test_chat_adds_no_second_bos() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    assert tokenizer.chat([{"role": "user", "content": "hello"}])[0] == 2


def test_chat_refusals() -> None:
    plain = Tokenizer(wrap(byte_level(), chat=False))
    with pytest.raises(RequestError, match="no chat template"):
        plain.chat([{"role": "user", "content": "x"}])
    with pytest.raises(RequestError, match="lacks role or content"):
        BYTES.chat([{"role": "user"}])
    strict = wrap(byte_level())
    strict.chat_template = "{{ raise_exception('roles must alternate') }}" + CHAT_TEMPLATE
    with pytest.raises(RequestError, match="roles must alternate"):
        Tokenizer(strict).chat([{"role": "user", "content": "x"}])


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    save(byte_level(), tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        Tokenizer.from_folder(tmp_path)
