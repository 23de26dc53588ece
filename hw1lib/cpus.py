"""The number and the instruction sets of the CPUs that this process may use."""

import os

import joblib

ONEDNN = {  # oneDNN's instruction sets for x86-64 in ascending order, with the CPU flag that each adds
    "SSE41": "sse4_1",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx_vnni",
    "AVX2_VNNI_2": "avx_ne_convert",
    "AVX512_CORE": "avx512_bw",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_bf16",
    "AVX512_CORE_AMX_FP16": "amx_fp16",
}


def available(threads=True):
    """Return how many CPUs this process may use, at least 1.

    This is the minimum of its CPU affinity (taskset, Slurm), the quota of its container, and OMP_NUM_THREADS, which
    batch systems, Dask and torchrun set for the processes that they start.

    Args:
        threads: whether OMP_NUM_THREADS counts.
    """
    count, setting = joblib.cpu_count(), os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    limit = int(setting) if threads and setting.isdecimal() else 0
    return min(count, limit) if limit else count


def share(processes, threads=True):
    """Return the number of CPUs for each of several processes or threads, at least 1; `threads` as for `available`."""
    return max(1, available(threads=threads) // processes)


def instruction_sets():
    """Return the instruction sets in use by ATen, such as "AVX2", and by oneDNN, a key of ONEDNN or "" (not x86-64).

    These are the best that the CPU supports, unless ATEN_CPU_CAPABILITY or ONEDNN_MAX_CPU_ISA limits them to emulate
    another CPU.
    """
    import torch

    flags, names = torch.cpu.get_capabilities(), list(ONEDNN)
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    allowed = names[: names.index(limit) + 1] if limit in names else names  # oneDNN ignores unknown names
    usable = [name for name in allowed if flags.get(ONEDNN[name])]
    return torch.backends.cpu.get_cpu_capability(), usable[-1] if usable else ""


def fast_bfloat16():
    """Return whether the instruction sets in use multiply bfloat16 natively: AVX512-BF16 or AMX."""
    (aten, onednn), names = instruction_sets(), list(ONEDNN)
    return aten == "AVX512" and onednn in names[names.index("AVX512_CORE_BF16") :]
