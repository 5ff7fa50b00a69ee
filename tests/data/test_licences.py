"""Licences: read from real metadata files in a temporary site folder."""

from importlib.metadata import Distribution

import pytest

from workbench.data.licences import licence_of_text, permissive_expression, permissive_licence

MIT_TEXT = "Permission is hereby granted, free of charge, to any person obtaining a copy"


@pytest.fixture
def make(tmp_path):
    def _make(*fields, licence_file=None):
        folder = tmp_path / "thing-1.0.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.4", "Name: thing", "Version: 1.0", *fields]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        record = "thing-1.0.dist-info/METADATA,,\n"
        if licence_file:
            (folder / "LICENSE").write_text(licence_file)
            record += "thing-1.0.dist-info/LICENSE,,\n"
        (folder / "RECORD").write_text(record)
        return Distribution.at(folder)

    return _make


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 OR BSD-2-Clause", True),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("MPL-2.0 AND MIT", False),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND (GPL-2.0-only OR BSD-3-Clause)", False),
        ("LicenseRef-NVIDIA", False),
    ],
)
def test_expressions(expression, permissive):
    assert permissive_expression(expression) is permissive


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("BSD 3-Clause License", "BSD"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("LGPL with exceptions", None),
        ("NVIDIA Proprietary Software", None),
        (MIT_TEXT + " " * 50 + "of this software and associated documentation", "MIT"),
        ("GNU GENERAL PUBLIC LICENSE Version 3, " + MIT_TEXT * 2, None),
        ("a licence of our own making", None),
    ],
)
def test_free_text(text, licence):
    assert licence_of_text(text) == licence


def test_the_expression_is_believed_before_the_classifier(make):
    thing = make(
        "License-Expression: MPL-2.0", "Classifier: License :: OSI Approved :: MIT License"
    )
    assert permissive_licence(thing) is None


def test_every_classifier_has_to_be_permissive(make):
    thing = make(
        "Classifier: License :: OSI Approved :: MIT License",
        "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
    )
    assert permissive_licence(thing) is None


def test_the_licence_file_is_the_last_resort(make):
    assert permissive_licence(make(licence_file=MIT_TEXT + " of this software" * 9)) == "MIT"


def test_nothing_stated_is_not_permissive(make):
    assert permissive_licence(make()) is None
