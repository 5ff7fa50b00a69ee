"""Split, deduplication and caps on made-up files."""

from workbench.data.documents import definitions, digest_of
from workbench.data.selection import CleanFile, split_files, training_documents
from workbench.data.sources import Origin


def make_file(distribution, module, text):
    origin = Origin(distribution, "1.0", "MIT")
    return CleanFile(origin, module, text, digest_of(text), tuple(definitions(text)))


def function(name, lines=6):
    body = "".join(
        f"    {name}_{n} = compute_something({n}, mode='{name}')\n" for n in range(lines)
    )
    return f"def {name}():\n{body}    return {name}_0\n"


def modules(distribution, held_out, count):
    from workbench.data.holdout import is_held_out

    names = (f"{distribution}.module_{n}" for n in range(100_000))
    found = (name for name in names if is_held_out(distribution, name) is held_out)
    return [next(found) for _ in range(count)]


def test_held_out_code_never_reaches_training():
    hidden, open_one, open_two = *modules("lib", True, 1), *modules("lib", False, 2)
    secret = function("secret")
    files = [
        make_file("lib", hidden, secret),
        make_file("lib", open_one, secret + "\n\n" + "".join(map(function, "abcdefgh"))),
        make_file("lib", open_two, secret + "\n\nx = 1\n"),
    ]
    split = split_files(files, max_share=1.0)
    assert [file.module for file in split.held_out] == [hidden]
    assert [file.module for file in split.train] == [open_one], "the other one is mostly held out"
    pieces = [d.text for _, d in training_documents(split) if d.kind != "file"]
    assert secret not in pieces
    assert function("a") in pieces


def test_equal_files_and_definitions_count_once():
    one, two, three = modules("lib", False, 3)
    files = [
        make_file("lib", one, function("a") + "\n\n" + function("b")),
        make_file("lib", two, function("a") + "\n\n\n" + function("b")),
        make_file("lib", three, function("a") + "\n\n" + function("c")),
    ]
    split = split_files(files, max_share=1.0)
    assert len(split.train) == 2
    pieces = [d.text for _, d in training_documents(split) if d.kind == "function"]
    assert sorted(pieces) == sorted(map(function, "abc"))


def test_one_distribution_cannot_dominate():
    files = [
        make_file(name, module, function(f"f{n}", lines=10))
        for name, count in [("large", 200), *((f"small{k}", 20) for k in range(10))]
        for n, module in enumerate(modules(name, False, count))
    ]
    # equal texts would be dropped as duplicates, so every file gets its own
    files = [make_file(f.origin.name, f.module, f.text + f"# {f.key}\n") for f in files]
    split = split_files(files, max_share=0.2)
    total = sum(len(file.text) for file in split.train)
    large = sum(len(file.text) for file in split.train if file.origin.name == "large")
    assert 0.1 < large / total <= 0.21
    assert split.dropped["over the distribution's share"] > 0


def test_the_order_of_the_files_does_not_matter():
    files = [
        make_file("lib", m, function(f"f{n}")) for n, m in enumerate(modules("lib", False, 30))
    ]
    forward = training_documents(split_files(files, 1.0))
    assert forward == training_documents(split_files(files[::-1], 1.0))
