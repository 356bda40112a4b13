"""Decisions of setup.py, and the script that compiles the CUDA sources."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_torch(cuda: str | None, visible: bool) -> SimpleNamespace:
    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(is_available=lambda: visible)
    )


@pytest.mark.parametrize(
    ("cuda", "visible", "home", "nvcc", "force", "expected"),
    [
        (None, False, None, "", None, False),
        ("13.2", False, "/cuda", "13", None, False),  # an nvcc on PATH is no reason
        ("13.2", True, None, "", None, False),
        ("13.2", True, "/cuda", "12", None, False),
        ("13.2", True, "/cuda", "13", None, True),
        ("13.2", False, "/cuda", "13", "1", True),
        ("13.2", True, "/cuda", "13", "0", False),
    ],
)
def test_cuda_decision(
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    visible: bool,
    home: str | None,
    nvcc: str,
    force: str | None,
    expected: bool,
) -> None:
    setup = load(ROOT / "setup.py")
    monkeypatch.setattr(setup, "nvcc_major", lambda home: nvcc)
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    if force is not None:
        monkeypatch.setenv("FORCE_CUDA", force)
    assert setup.cuda_decision(fake_torch(cuda, visible), home)[0] is expected


@pytest.mark.parametrize(
    ("cuda", "message"), [(None, "this torch has no CUDA"), ("13.2", "there is no nvcc")]
)
def test_forced_cuda_that_cannot_be_is_an_error(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, message: str
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=message):
        load(ROOT / "setup.py").cuda_decision(fake_torch(cuda, True), None)


def test_setup_without_torch_exits_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = load(ROOT / "setup.py")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="torch is not installed here"):
        setup.extensions()


def test_compile_script_without_nvcc_exits_with_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load(ROOT / "csrc" / "compile_cuda.py")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(script.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match="no nvcc"):
        script.find_nvcc()


def test_compile_script_leaves_out_what_is_built_without_torch() -> None:
    names = [source.name for source in load(ROOT / "csrc" / "compile_cuda.py").torch_sources()]
    assert "bindings.cpp" in names
    assert "module.cpp" not in names  # csrc/kitti_eval


PTXAS = (
    "ptxas info    : Compiling entry function 'some_kernel' for 'sm_90'\n"
    "    16 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n"
    "ptxas info    : Used 64 registers, used 0 barriers, 96 bytes smem, 400 bytes cmem[0]\n"
)


def test_compile_script_reads_what_ptxas_prints(capsys: pytest.CaptureFixture[str]) -> None:
    script = load(ROOT / "csrc" / "compile_cuda.py")
    kernels = script.read_kernels(PTXAS.format(stores=24, loads=16))
    assert kernels == [script.Kernel("some_kernel", "90", 64, 96, 40)]
    spilling = script.report_kernels(kernels)
    assert [" ".join(line.split()) for line in spilling] == [
        "sm_90 64 registers, 96 bytes shared, 40 bytes spilled some_kernel"
    ]
    none = PTXAS.format(stores=0, loads=0).replace("96 bytes smem, ", "")
    assert script.report_kernels(script.read_kernels(none)) == []
    assert script.read_kernels(none)[0].shared == 0
    assert capsys.readouterr().out.count("some_kernel") == 2


@pytest.mark.parametrize(
    ("version", "registers", "changed"),
    [("13.0.88", 64, []), ("13.0.88", 63, ["    csrc/a.cu: some_kernel, sm_90"]), ("13.1.0", 63, [])],
)
def test_compile_script_compares_with_a_record_of_the_same_compiler(
    tmp_path: Path, version: str, registers: int, changed: list[str]
) -> None:
    script = load(ROOT / "csrc" / "compile_cuda.py")
    on = {"registers": registers, "static_shared": 96, "spilled": 0}
    row = {"source": "csrc/a.cu", "kernel": "some_kernel", "sm": {"90": on}}
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"nvcc": version, "torch": "2.14.1", "kernels": [row]}))
    found = {"csrc/a.cu": script.read_kernels(PTXAS.format(stores=0, loads=0))}
    assert script.changed_since(record, "13.0.88", "2.14.1", found) == changed
    missing = [] if version != "13.0.88" else ["    csrc/a.cu: some_kernel, sm_90"]
    assert script.changed_since(record, "13.0.88", "2.14.1", {}) == missing


def test_compile_script_without_a_version_of_nvcc_exits_with_a_message(tmp_path: Path) -> None:
    script = load(ROOT / "csrc" / "compile_cuda.py")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, $ANSWER\n")
    nvcc.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSWER", "release 13.0, V13.0.88")
        assert script.nvcc_version(nvcc) == "13.0.88"
        patch.setenv("ANSWER", "of a later form")
        with pytest.raises(SystemExit, match="prints no version such as"):
            script.nvcc_version(nvcc)


def test_compile_script_names_kernels_with_what_they_are_made_for() -> None:
    script = load(ROOT / "csrc" / "compile_cuda.py")
    if script.shutil.which("c++filt") is None:
        pytest.skip("no c++filt to read C++ names with")
    name = "_ZN6bevkd24msda12_GLOBAL__N_114forward_kernelIN3c108BFloat16ELb1EEEvPT_"
    assert script.demangle(name) == "forward_kernel<BFloat16, true>"


@pytest.mark.parametrize(
    ("spilled", "changed", "code"),
    [(0, [], None), (8, [], "less to hold"), (0, ["    a.cu: some_kernel"], r"(?s)cuda_kernels.*a\.cu")],
)
def test_compile_script_fails_where_a_kernel_spills_or_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spilled: int, changed: list[str], code: str | None
) -> None:
    script = load(ROOT / "csrc" / "compile_cuda.py")
    for name in ("find_nvcc", "installed_headers", "oldest_headers"):
        monkeypatch.setattr(script, name, lambda: tmp_path)
    log = PTXAS.format(stores=spilled, loads=0)
    monkeypatch.setattr(script, "compile_one", lambda command, source, headers: log)
    monkeypatch.setattr(script, "nvcc_version", lambda nvcc: "13.0.88")
    monkeypatch.setattr(script, "changed_since", lambda record, version, torch, kernels: changed)
    if code is None:
        script.main()
    else:
        with pytest.raises(SystemExit, match=code):
            script.main()


def test_further_flags_reach_the_compiler_and_the_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVKD2_CXX_FLAGS", "-fsanitize=thread -O1")
    monkeypatch.setenv("FORCE_CUDA", "0")
    for extension in load(ROOT / "setup.py").extensions()[0]:
        compiled = extension.extra_compile_args
        compiled = compiled["cxx"] if isinstance(compiled, dict) else compiled
        assert compiled[-2:] == extension.extra_link_args == ["-fsanitize=thread", "-O1"]


def test_sanitize_script_knows_what_it_builds() -> None:
    sanitize = load(ROOT / "csrc" / "sanitize.py")
    assert set(sanitize.FLAGS) == set(sanitize.LIBRARIES) == set(sanitize.OPTIONS) == set(sanitize.SELECTED)
    with pytest.raises(SystemExit, match="unknown memory; expected address or thread"):
        sanitize.main(["memory"])
