"""Readers of public traces, on samples written by hand; a bad row is named by line and field."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from workbench.data.traces import read_azure, read_mooncake
from workbench.errors import WorkloadError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:48.1805900,1200,109
2023-11-16 18:15:47.6805900,1,1
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 1024, "output_length": 7, "hash_ids": [0, 1]}

{"timestamp": 2500, "input_length": 600, "output_length": 1, "hash_ids": [0, 9]}
"""


@pytest.mark.parametrize("zipped", [False, True])
def test_azure(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "azure.csv"
    path.write_bytes(gzip.compress(AZURE.encode()) if zipped else AZURE.encode())
    workload = read_azure(path)
    assert [(r.arrival, r.num_prompt, r.num_output) for r in workload] == [
        (0.0, 374, 44),
        (1.0, 1, 1),
        (1.5, 1200, 109),
    ]
    assert workload.name == "azure"
    assert workload.num_shared_tokens == 0
    prompts = [workload.prompt(request, 500) for request in workload]
    assert [len(prompt) for prompt in prompts] == [374, 1, 1200]
    assert prompts[0][:1] != prompts[2][:1] or prompts[0][:9] != prompts[2][:9]


def test_mooncake(tmp_path: Path) -> None:
    path = tmp_path / "moon.jsonl"
    path.write_text(MOONCAKE)
    workload = read_mooncake(path, seed=4)
    assert [(r.arrival, r.num_prompt, r.num_output) for r in workload] == [
        (0.0, 1100, 5),
        (1.5, 1024, 7),
        (2.5, 600, 1),
    ]
    assert workload.num_shared_tokens == 1024 + 512
    first, second, third = (workload.prompt(request, 1000) for request in workload)
    assert second == first[:1024]
    assert third[:512] == first[:512]
    assert third[512:] != first[512:600]
    assert first == workload.prompt(workload.requests[0], 1000)
    assert first != read_mooncake(path, seed=5).prompt(workload.requests[0], 1000)
    assert min(first) >= 16
    assert max(first) < 1000


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2023-11-16 18:15:46,x,44", "line 5, ContextTokens='x': must be a whole number"),
        ("2023-11-16 18:15:46,5,0", "line 5, GeneratedTokens='0': must be a whole number"),
        ("2023-11-16 18:15:46,5,-3", "line 5, GeneratedTokens='-3'"),
        ("2023-11-16 18:15:46,٣,3", "line 5, ContextTokens='٣'"),
        ("2023-11-16 18:15:46,5", "line 5, row=.*has 2 fields, not 3"),
        ("yesterday,5,6", "line 5, TIMESTAMP='yesterday': must be a time such as"),
    ],
)
def test_a_bad_azure_row(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE + line + "\n", encoding="utf-8")
    with pytest.raises(WorkloadError, match=told) as caught:
        read_azure(path)
    assert caught.value.line == 5
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 5, row='{': is no JSON"),
        ("[1]", "line 5, row=.*is no JSON object"),
        ('{"timestamp": 1}', "line 5, input_length=None: is missing"),
        (
            '{"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": [1]}',
            "line 5, timestamp=-1: must be milliseconds",
        ),
        (
            '{"timestamp": NaN, "input_length": 1, "output_length": 1, "hash_ids": [1]}',
            "line 5, timestamp=nan: must be milliseconds",
        ),
        (
            '{"timestamp": 1, "input_length": true, "output_length": 1, "hash_ids": [1]}',
            "line 5, input_length=True",
        ),
        (
            '{"timestamp": 1, "input_length": 1, "output_length": 1.5, "hash_ids": [1]}',
            "line 5, output_length=1.5",
        ),
        (
            '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["1"]}',
            "line 5, hash_ids=.*must be a list of whole numbers",
        ),
        (
            '{"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [1]}',
            "line 5, hash_ids=.*has 1 blocks, and input_length=513 needs 2",
        ),
    ],
)
def test_a_bad_mooncake_row(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "moon.jsonl"
    path.write_text(MOONCAKE + line + "\n")
    with pytest.raises(WorkloadError, match=told):
        read_mooncake(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(WorkloadError, match=r"line 1, header=.*is not TIMESTAMP"):
        read_azure(path)
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_azure(tmp_path / "nowhere.csv")
    whole = gzip.compress(MOONCAKE.encode() * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_mooncake(tmp_path / "cut.jsonl.gz")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_mooncake(tmp_path / "bytes.jsonl")
