"""`Tokenizer`: text to token ids and back, chat prompts, and a text stream for each request.

A thin face over a fast tokenizer of transformers, loaded with a model's checkpoint. The engine
encodes prompts with it and streams text. It downloads nothing, and runs no code of a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.describe import Described
from workbench.errors import CheckpointError, RequestError
from workbench.models.detokenize import ByteStream, Detokenizer, WindowStream, byte_of_character
from workbench.models.text_stream import IncrementalText
from workbench.sampling_params import SamplingParams

# How vocabularies with byte fallback write the token of one byte.
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer(Described):
    """Wraps a fast tokenizer, kept as `hf` for whatever is not here.

    vocab_size counts added tokens too, and may differ from the rows of the model's embedding.
    eos_token_ids: the tokenizer's own end token and those given (a model's `generation_config`).
    """

    def __init__(self, hf: PreTrainedTokenizerFast, eos_token_ids: Iterable[int] = ()) -> None:
        self.hf = hf
        self._backend = hf.backend_tokenizer
        self.vocab_size: int = len(hf)
        own = [] if hf.eos_token_id is None else [hf.eos_token_id]
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys([*own, *eos_token_ids]))
        added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._byte_level = isinstance(self._backend.decoder, ByteLevel)
        self._byte_of_character = byte_of_character()
        self._bytes: dict[int, bytes] = {}  # filled as tokens are met; shared by all streams

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer of a checkpoint folder (`tokenizer.json` and its settings).

        Raises `CheckpointError` if the folder has none, or one that cannot be read.
        """
        folder = Path(path)
        if not (folder / "tokenizer.json").is_file():
            raise CheckpointError(
                folder, ["no tokenizer.json"], "Give a folder in the Hugging Face layout."
            )
        try:
            hf = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        # The library lets whatever its parsers raise pass through, down to plain Exception.
        except Exception as error:
            problem = f"the tokenizer cannot be read: {error}"
            raise CheckpointError(folder, [problem], "Save or download it again.") from error
        return cls(hf, _eos_of_generation_config(folder))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of `text`, with BOS and the like as the tokenizer's own settings say.

        special: False leaves BOS and the like out, as for a piece of a text.
        """
        return list(self.hf.encode(text, add_special_tokens=special, verbose=False))

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of these ids; bytes that are no character become U+FFFD."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special))

    def piece(self, token_id: int) -> bytes:
        """Return what a token reads as by itself: UTF-8, or a part of it; special ones by name.

        Empty for an id without a token. For showing tokens one by one; texts come from `stream`.
        """
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return b"" if token is None else str(token).encode()
        if self._byte_level:
            return self._bytes_of(token_id)
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte:
            return bytes.fromhex(byte[1])
        return str(token).replace("\u2581", " ").encode()

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the prompt of a conversation, up to where the assistant's answer begins.

        messages: mappings with `role` and `content`. Raises `RequestError` if the tokenizer has no
        chat template, or if its template refuses the messages.
        """
        if not self.hf.chat_template:
            raise RequestError(
                "messages", messages, "the tokenizer has no chat template", "Encode a text prompt."
            )
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise RequestError(
                    "messages", message, "lacks role or content", "Give both in each message."
                )
        try:
            text = self.hf.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            problem = f"the chat template refuses them: {error}"
            raise RequestError("messages", messages, problem, "Change the messages.") from error
        # The template writes its special tokens itself.
        return list(self.hf.encode(text, add_special_tokens=False, verbose=False))

    def stream(
        self, prompt_token_ids: Sequence[int] = (), params: SamplingParams | None = None
    ) -> IncrementalText:
        """Return an empty text for the tokens that will follow this prompt.

        Special tokens show nothing. Of the parameters, `stop` and `include_stop_str` are read.
        """
        detokenizer: Detokenizer
        if self._byte_level:
            detokenizer = ByteStream(self._bytes_of, prompt_token_ids)
        else:
            detokenizer = WindowStream(self.decode, self._special_ids, prompt_token_ids)
        if params is None:
            return IncrementalText(detokenizer)
        stops = (params.stop,) if isinstance(params.stop, str) else params.stop
        return IncrementalText(detokenizer, stops, params.include_stop_str)

    def describe(self) -> dict[str, Any]:
        """Return the vocabulary and how it is decoded."""
        return {
            "vocab_size": self.vocab_size,
            "eos_token_ids": list(self.eos_token_ids),
            "decoder": type(self._backend.decoder).__name__,
            "chat template": bool(self.hf.chat_template),
        }

    def _bytes_of(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        """Return a byte-level token's bytes; none for a special token, or an id without a token."""
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return b""
        table = self._byte_of_character
        if all(character in table for character in token):
            return bytes(table[character] for character in token)
        return str(token).encode()  # an added token, written as plain text


def _eos_of_generation_config(folder: Path) -> list[int]:
    """Return the end tokens of `generation_config.json`, if the folder has one."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return []
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        problem = f"generation_config.json cannot be read: {error}"
        raise CheckpointError(folder, [problem], "Mend or remove the file.") from error
    ids = value if isinstance(value, list) else [value]
    return [token_id for token_id in ids if token_id is not None]
