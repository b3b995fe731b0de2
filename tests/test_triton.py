"""The kernels in Triton's interpreter, on a GPU where there is one, and through the compiler without one.

Triton decides when it is imported whether it interprets: the numbers are tested in processes of their own.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcls_models.layers.depthwise import gpu as module

HERE = Path(__file__).parent


def has_triton():
    found = importlib.util.find_spec("triton") is not None
    return found and hasattr(importlib.import_module("triton.language"), "gather")


needs_triton = pytest.mark.skipif(
    not has_triton(), reason="needs triton 3.3, which torch brings on Linux from 2.7 on"
)


def run_numbers(**variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "DCLS_TRITON")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / "triton_numbers.py"),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=HERE.parent, env=environment | variables, timeout=280
    )


@needs_triton
def test_numbers_in_the_interpreter():
    done = run_numbers(TRITON_INTERPRET="1")
    if "TypeError: only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("the interpreter of this triton (3.5 and before) needs NumPy before 2.4")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.gpu
def test_numbers_on_a_gpu():
    done = run_numbers()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def compiled(kernel, arguments, constants, capability):
    """What Triton's compiler makes of a launch, for which it needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    options = {"num_warps": constants.pop("num_warps")}
    values = dict(zip(kernel.arg_names, arguments, strict=False))
    constants |= {n: v for n, v in values.items() if v is None}
    signature = {n: POINTERS[v.dtype] if torch.is_tensor(v) else "i32" for n, v in values.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {n: signature[n] for n in kernel.arg_names}, constants)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@needs_triton
@pytest.mark.parametrize(
    ("capability", "dtype", "units"),
    [(90, torch.bfloat16, "wgmma"), (80, torch.float16, "mma.sync"), (90, torch.float32, "fma.rn.f32")],
    ids=str,
)
def test_the_products_compile_for_matrix_units(capability, dtype, units, monkeypatch, tmp_path):
    """float32 has to go to the ordinary units: the matrix units would round it."""
    import triton

    launches = []
    note = lambda kernel, *a, grid, warmup, **constants: launches.append((kernel, a, constants))  # noqa: E731
    monkeypatch.setattr(triton.JITFunction, "run", note)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, w = torch.zeros(64, 2, 14, 14, dtype=dtype), torch.zeros(2, 1, 17, 17, dtype=dtype)
    module.convolution(x, w, (8, 8))
    module.correlation(x, x, (17, 17), (8, 8))
    launches = [launch for launch in launches if launch[0].__name__ in ("convolve", "correlate")]
    assert [kernel.__name__ for kernel, *_ in launches] == ["convolve", "correlate"][dtype == torch.float32 :]
    for launch in launches:
        made = compiled(*launch, capability)
        assert units in made.asm["ptx"]
        assert ("mma" in made.asm["ptx"]) == (dtype != torch.float32)
        assert made.metadata.shared <= 160 * 1024, (
            "of the 163 KiB (8.0) and 227 KiB (9.0) that a program may have"
        )


class TestDispatch:
    """Without a GPU, in a process that does not interpret: ATen computes, whatever is asked for."""

    x, w = torch.randn(2, 3, 20, 20), torch.randn(3, 1, 17, 17)

    @pytest.mark.parametrize("wish", [None, "0", "1"])
    def test_a_cpu_is_left_alone(self, wish, monkeypatch):
        if wish is None:
            monkeypatch.delenv("DCLS_TRITON", raising=False)
        else:
            monkeypatch.setenv("DCLS_TRITON", wish)
        assert not module.supports(self.x, self.w, (8, 8))
        assert not module.chosen(self.x, self.w, (8, 8))
        assert not module.chosen(self.x.to("meta"), self.w.to("meta"), (8, 8))

    def test_without_triton(self, monkeypatch):
        module._runs_on.cache_clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert not module._runs_on(torch.device("cuda", 0))
        module._runs_on.cache_clear()

    def test_the_kernels_are_not_imported_before_they_are_needed(self):
        code = "import sys; from dcls_models.layers.depthwise import gpu; print(*sys.modules, sep='\\n')"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, timeout=120)
        assert "dcls_models.layers.depthwise.gpu" in done.stdout.split(), done.stderr
        assert "dcls_models.layers.depthwise.triton_kernels" not in done.stdout.split()
