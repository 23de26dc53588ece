"""The runner of tests on emulated processors: which there are, and what it says at the end."""

import re

import pytest

from hw1lib import cpus
from tools import processors


@pytest.mark.parametrize(
    ("onednn", "emulated"),
    [("", 0), ("SSE41", 1), ("AVX", 1), ("AVX2", 2), ("AVX512_CORE_VNNI", 2), ("AVX512_CORE_BF16", 3)]
    + [("AVX512_CORE_AMX", 3)],
)
def test_processors_are_emulated_as_far_as_this_one_reaches(onednn, emulated):
    own, *others = processors.processors(onednn).values()
    assert own == {} and [isinstance(other, dict) for other in others] == [True] * emulated + [False] * (3 - emulated)
    assert all((onednn or "none") in other for other in others[emulated:])


@pytest.mark.slow
@pytest.mark.skipif(not cpus.instruction_sets()[1], reason="nothing is emulated on this processor")
def test_each_run_has_a_row_and_a_failure_in_one_fails_all(tmp_path, monkeypatch, capsys):
    """Here the test fails on the emulated processor with two threads alone."""
    test = tmp_path / "test_one.py"
    condition = "os.environ.get('ONEDNN_MAX_CPU_ISA') != 'SSE41' or os.environ['HW1_TEST_THREADS'] != '2'"
    test.write_text(f"import os\n\ndef test_one():\n    assert {condition}\n")
    monkeypatch.setattr(processors, "EMULATED", [("default", "SSE41"), ("avx9", "AVX512_CORE_AMX_FP16")])
    monkeypatch.setattr(processors, "THREADS", (1, 2))
    for name in processors.LIMITS:
        monkeypatch.setenv(name, "AVX")  # what emulates this very processor does not count
    assert processors.main([str(test), "-p", "no:cacheprovider"]) == 1
    out = capsys.readouterr().out
    results = re.findall(r"^(this processor|default SSE41) +(\d) +1 (\w+) in", out, re.M)
    own, emulated = [("this processor", "1", "passed"), ("this processor", "2", "passed")], "default SSE41"
    assert results == [*own, (emulated, "1", "passed"), (emulated, "2", "failed")] and out.count("skipped: it has") == 2
