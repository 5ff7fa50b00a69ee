"""Every pair of features at once: the plain counterpart's tokens, or a typed error.

The features are in `tests/support/features.py`, one entry each; this file needs no change for more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from drive import MakeEngine
from features import (
    FEATURES,
    PROMPTS,
    Feature,
    exist_together,
    model_of,
    refusal,
    run,
    settings_of,
    table,
    together,
    use_samplers,
)

from workbench.errors import ConfigError, RequestError
from workbench.request import CompletionOutput
from workbench.sampling_params import SamplingParams

Plain = Callable[[int, SamplingParams, tuple[Feature, ...]], list[CompletionOutput]]
PAIRS = [pair for pair in combinations(FEATURES, 2) if exist_together(*pair)]


@pytest.fixture(scope="module")
def _plain() -> dict[Any, list[CompletionOutput]]:
    return {}


@pytest.fixture
def plain(make_engine: MakeEngine, _plain: dict[Any, list[CompletionOutput]]) -> Plain:
    """Return the outputs of one prompt by itself, with nothing else going on; remembered."""

    def outputs(
        place: int, params: SamplingParams, features: tuple[Feature, ...]
    ) -> list[CompletionOutput]:
        model, asked = model_of(features), settings_of(features)
        settings: dict[str, Any] = {"guided": params.guided_decoding is not None}
        if "dropping" in asked:
            settings |= {name: asked[name] for name in ("dropping", "block_size")}
        samplers = tuple(f.name for f in features if f.sampler is not None)
        merges = tuple(f for f in features if f.merged is not None)
        merged = tuple(f.name for f in merges)
        key = model, place, params, samplers, merged, tuple(settings.values())
        if key not in _plain:
            engine = make_engine(model, backend="reference", prefix_reuse=False, **settings)
            use_samplers(engine, features)
            undo = [f.merged(engine.model) for f in merges if f.merged is not None]
            _plain[key] = engine.generate([PROMPTS[place]], params)[0].outputs
            for put_back in undo:
                put_back()
        return _plain[key]

    return outputs


def assert_equal(found: list[CompletionOutput], expected: list[CompletionOutput]) -> None:
    assert [o.token_ids for o in found] == [o.token_ids for o in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.text, a.finish_reason, a.stop_reason) == (b.text, b.finish_reason, b.stop_reason)
        assert (a.logprobs is None) == (b.logprobs is None)
        for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
            assert x.token_id == y.token_id
            assert x.logprob == pytest.approx(y.logprob, abs=1e-4)


def check(make_engine: MakeEngine, plain: Plain, *features: Feature) -> Any:
    """Run with these features and compare; return the run."""
    state, params = run(make_engine, features), together(features)
    for place, (name, prompt) in enumerate(zip(state.names, PROMPTS, strict=True)):
        found = state.engine.output(name).outputs
        assert_equal(found, plain(place, params, features))
        for feature in features:
            if feature.holds is not None:
                assert all(feature.holds(output, prompt) for output in found), feature.name
    for twin, original in state.twins.items():
        if twin in state.engine.requests:  # else it was travelled back to before it was made
            record = state.engine.requests[twin]
            expected = plain(state.names.index(original), record.request.params, features)
            assert_equal(state.engine.output(twin).outputs, expected)
    return state


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_each_feature_alone(make_engine: MakeEngine, plain: Plain, feature: Feature) -> None:
    """It does what it is about: something happens, or some token is another."""
    state = check(make_engine, plain, feature)
    if feature.happened is not None:
        assert feature.happened(state), "the run never met what the feature is about"
    elif feature.sampler is not None or feature.params:
        engine = make_engine()
        without = [o.outputs for o in engine.generate(PROMPTS, together(()))]
        assert [state.engine.output(name).outputs for name in state.names] != without


@pytest.mark.parametrize(
    ("a", "b"), PAIRS, ids=[f"{a.name} × {b.name}".replace(" ", "_") for a, b in PAIRS]
)
def test_every_pair(make_engine: MakeEngine, plain: Plain, a: Feature, b: Feature) -> None:
    reason = refusal(a, b)
    if reason is None:
        check(make_engine, plain, a, b)
        return
    with pytest.raises((RequestError, ConfigError), match=reason):
        run(make_engine, (a, b))


def test_the_table_says_what_is_run(repository: Path) -> None:
    written = (repository / "COMBINATIONS.md").read_text(encoding="utf-8")
    assert written == table(), "write it again: `python tests/support/features.py`"
