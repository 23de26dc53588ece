"""tools/processors.py emulates the processors that this one can, and reports every run."""

import re

import pytest

from hw1lib import cpus
from tools import processors


@pytest.mark.parametrize(
    ("onednn", "emulated"),
    [("", 0), ("SSE41", 1), ("AVX", 1), ("AVX2", 2), ("AVX512_CORE_VNNI", 2), ("AVX512_CORE_BF16", 3)]
    + [("AVX512_CORE_AMX", 3)],
)
def test_only_processors_that_this_one_can_emulate_are_run(onednn, emulated):
    own, *others = processors.processors(onednn).values()
    assert own == {} and [isinstance(other, dict) for other in others] == [True] * emulated + [False] * (3 - emulated)
    assert all((onednn or "none") in other for other in others[emulated:])


@pytest.mark.slow
@pytest.mark.skipif(not cpus.instruction_sets()[1], reason="nothing is emulated on this processor")
def test_each_run_is_reported_and_one_failure_fails_all(tmp_path, monkeypatch, capsys):
    """The test fails only on the emulated processor with two threads."""
    test = tmp_path / "test_one.py"
    condition = "os.environ.get('ONEDNN_MAX_CPU_ISA') != 'SSE41' or os.environ['HW1_TEST_THREADS'] != '2'"
    test.write_text(f"import os\n\ndef test_one():\n    assert {condition}\n")
    monkeypatch.setattr(processors, "EMULATED", [("default", "SSE41"), ("avx9", "AVX512_CORE_AMX_FP16")])
    monkeypatch.setattr(processors, "THREADS", (1, 2))
    for name in processors.LIMITS:
        monkeypatch.setenv(name, "AVX")  # limits that are already set are ignored
    assert processors.main([str(test), "-p", "no:cacheprovider", "-p", "no:nbval"]) == 1
    out = capsys.readouterr().out
    results = re.findall(r"^(this processor|default SSE41) +(\d) +1 (\w+) in", out, re.M)
    own, emulated = [("this processor", "1", "passed"), ("this processor", "2", "passed")], "default SSE41"
    assert results == [*own, (emulated, "1", "passed"), (emulated, "2", "failed")] and out.count("skipped: it has") == 2
