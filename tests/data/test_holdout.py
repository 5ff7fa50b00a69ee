"""The hold-out rule: stable, of the right size, and blind to vendoring."""

from workbench.data.holdout import STDLIB, is_held_out, stable_hash


def test_the_hash_never_changes():
    assert stable_hash("json.decoder") == 629659923250779960


def test_shares():
    packages = sum(is_held_out("thing", f"thing.module_{n}") for n in range(20_000)) / 20_000
    stdlib = sum(is_held_out(STDLIB, f"module_{n}") for n in range(20_000)) / 20_000
    assert 0.012 < packages < 0.018
    assert 0.035 < stdlib < 0.045


def test_a_vendored_copy_follows_its_original():
    held = [f"rich.part_{n}" for n in range(2000) if is_held_out("rich", f"rich.part_{n}")]
    assert held
    assert all(is_held_out("pip", f"pip._vendor.{module}") for module in held)


def test_distribution_names_compare_canonically():
    names = [f"a_b.module_{n}" for n in range(2000)]
    assert [is_held_out("A.B", n) for n in names] == [is_held_out("a-b", n) for n in names]
