"""The package as users meet it: quiet imports, no torchaudio needed, and a wheel that works from anywhere."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import audiotag

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "audiotag").rglob("*.py"))
# What the inference line may import of other people's; everything else belongs behind an extra.
CORE = {
    "numpy",
    "torch",
    "soundfile",
    "soxr",
    "safetensors",
    "huggingface_hub",
    "tqdm",
    "filelock",
    "shtab",
}
# Imported inside functions, each behind the extra that declares it; pandas where it is present.
OPTIONAL = {"av", "pyarrow", "matplotlib", "sounddevice", "pandas", "onnxruntime", "openvino", "ray", "fsspec"}
# Where torch may be imported at the top; everywhere else only inside functions, for a torch-free install runs them too.
TORCH_MODULES = {
    "frontend/logmel.py",
    "hear.py",  # HEAR's interface is one of torch modules and tensors
    "inference/devices.py",
    "networks/build.py",
    "networks/dymn.py",
    "networks/mobilenet.py",
    "runtimes/fused.py",
    "runtimes/fused_steps.py",
    "runtimes/torch.py",
}
LATE_MODULES = {"plot"}  # may import theirs at the top, since nothing imports them there


def python(code, *, cwd, **env):
    """Run code in a fresh interpreter; returns its standard output."""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def imported_after(code, tmp_path):
    out = python(f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.__stdout__)", cwd=tmp_path)
    return {name.split(".")[0] for name in json.loads(out.splitlines()[-1])}


def test_importing_audiotag_is_inert(tmp_path):
    loaded = imported_after("import audiotag; audiotag.__version__; dir(audiotag)", tmp_path)
    assert not loaded & (CORE | OPTIONAL | {"lightning"})


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["tag", "--help"], ["models"], ["labels", "dog"], ["--version"], ["train", "--help"]],
    ids=" ".join,
)
def test_commands_that_need_no_torch_import_none(argv, tmp_path):
    code = f"import audiotag.cli, io\nsys.stdout = io.StringIO()\nassert audiotag.cli.main({argv!r}) == 0"
    loaded = imported_after(code, tmp_path)
    assert not loaded & {"torch", "lightning", "matplotlib", "pandas", "av"}


def test_public_names_exist_and_are_documented():
    for name in audiotag.__all__:
        assert getattr(audiotag, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Taggr'"):
        _ = audiotag.Taggr


def typing_only(tree):
    """The nodes that only a type checker reads."""
    return {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.If) and isinstance(f.test, ast.Name) and f.test.id == "TYPE_CHECKING"
        for n in ast.walk(f)
    }


def top_level_imports(tree):
    """(imported package, inside a function) of every absolute import."""
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    hinted = typing_only(tree)
    for node in ast.walk(tree):
        if id(node) in hinted:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        else:
            continue
        for name in names:
            yield name.split(".")[0], id(node) in inside


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_inference_line_imports_only_what_it_declares(path):
    if {"training", "service"} & set(path.parts):
        pytest.skip("training and service have extras of their own")
    for package, late in top_level_imports(ast.parse(path.read_text())):
        if package in sys.stdlib_module_names or package == "audiotag":
            continue
        late = late or path.stem in LATE_MODULES
        assert package in CORE or (late and package in OPTIONAL), f"{package} in {path.name}"
        assert package != "torch" or late or path.relative_to(ROOT / "audiotag").as_posix() in TORCH_MODULES, path.name
    tree = ast.parse(path.read_text())
    hinted = typing_only(tree)
    inner = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level and id(n) not in hinted]
    assert path.parts[-2] == "cli" or not any((node.module or "").startswith("training") for node in inner)
    assert not any(node.module in LATE_MODULES for node in tree.body if isinstance(node, ast.ImportFrom))


def test_torchaudio_that_raises_breaks_nothing(tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libc10_cuda.so: cannot open')")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.tiny import sound, tiny_checkpoint
from audiotag import Tagger
tagger = Tagger(tiny_checkpoint(), device="cpu")
print(tagger.predict((sound(1)[::2], 16000)).top(1)[0].score)
"""
    assert 0 < float(python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path))) < 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the repository's files, in a copy so that nothing is left in it."""
    out = tmp_path_factory.mktemp("wheel")
    # --no-build-isolation: the build backend comes from this environment, not from the network.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    run = subprocess.run([*command, str(copy_of_repository(out))], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return next(out.glob("*.whl"))


def copy_of_repository(folder):
    ignore = shutil.ignore_patterns(".git", "__pycache__", "build", "*.egg-info", ".*_cache", ".hypothesis")
    return shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignore)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"audiotag", f"audiotag_dymn-{audiotag.__version__}.dist-info"}
    wanted = ["weights_manifest.json", "py.typed", "data/class_labels_indices.csv", "data/ontology.csv"]
    wanted += [f"service/page/{name}" for name in ("index.html", "style.css", "main.js", "icon.svg")]
    assert {f"audiotag/{name}" for name in wanted} <= set(names)
    assert wheel.name == f"audiotag_dymn-{audiotag.__version__}-py3-none-any.whl"


def test_the_manifest_at_the_root_is_the_packages():
    assert (ROOT / "weights_manifest.json").read_bytes() == (ROOT / "audiotag" / "weights_manifest.json").read_bytes()
    assert (ROOT / "weights_manifest.json").is_symlink() != (ROOT / "audiotag" / "weights_manifest.json").is_symlink()


# Longer than 400 lines, and still one subject each: the door with its overloads and docstrings; the label set.
ONE_SUBJECT = {"tagger.py", "labels/label_set.py"}


def test_a_file_over_400_lines_is_one_subject():
    names = {p.relative_to(ROOT / "audiotag").as_posix(): len(p.read_text().splitlines()) for p in MODULES}
    assert {name for name, lines in names.items() if lines > 400} <= ONE_SUBJECT
    assert max(names.values()) <= 560


def test_version_is_one_literal():
    assert "version = attr: audiotag.version.__version__" in (ROOT / "setup.cfg").read_text()
    assert audiotag.__version__ in (ROOT / "CHANGELOG.md").read_text()
