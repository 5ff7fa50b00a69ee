"""Names that nothing has get the nearest one, and what other engines call it."""

from __future__ import annotations

from dataclasses import fields

import pytest

import workbench as wb
from workbench.errors import ConfigError, InvalidValue, RequestError
from workbench.keywords import NAMES_ELSEWHERE, known_arguments


@known_arguments(RequestError, {"temperature": "It goes into params."})
def complete(prompt: str, *, params: int = 0) -> tuple[str, int]:
    """Complete."""
    return prompt, params


def test_a_known_argument_passes() -> None:
    assert complete("x") == ("x", 0)
    assert complete(prompt="x", params=2) == ("x", 2)
    with pytest.raises(TypeError, match="prompt"):
        complete()  # type: ignore[call-arg]


def test_an_unknown_argument_names_the_nearest_or_where_it_belongs() -> None:
    with pytest.raises(RequestError, match=r"complete\.param=3.*Did you mean `params`\?"):
        complete("x", param=3)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match=r"complete\.temperature=1.*It goes into params\."):
        complete("x", temperature=1)  # type: ignore[call-arg]


def test_what_it_is_called_elsewhere_exists_here() -> None:
    ours = {field.name for kind in (wb.EngineConfig, wb.SamplingParams) for field in fields(kind)}
    assert set(NAMES_ELSEWHERE.values()) <= ours
    assert not set(NAMES_ELSEWHERE) & ours


@pytest.mark.parametrize(
    ("name", "ours"), [("max_num_seqs", "max_sequences"), ("enable_prefix_caching", "prefix_reuse")]
)
def test_settings_of_other_engines(name: str, ours: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean `{ours}`"):
        wb.LLM("tinypy", **{name: 1})


def test_sampling_parameters_given_to_generate_belong_elsewhere() -> None:
    with pytest.raises(RequestError, match=r"max_tokens=5: .*`wb\.SamplingParams\(max_tokens=…\)`"):
        wb.LLM.generate(None, "x", max_tokens=5)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("name", ["chunked_prefill", "prefix_reuse", "prefix_wait"])
def test_text_is_no_switch(name: str) -> None:
    with pytest.raises(InvalidValue, match=f"{name}='no'.*True or False"):
        wb.SchedulerConfig(**{name: "no"})
