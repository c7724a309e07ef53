"""pyproject.toml, requirements.lock, environment.yml and the Makefile describe one environment."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec, Version as CondaVersion, VersionSpec

from artifact import paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK_LINES = [
    line
    for line in (paths.ROOT / "requirements.lock").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
CONDA = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
MAKEFILE = (paths.ROOT / "Makefile").read_text()

PYPI_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}
"""What conda-forge calls differently."""
NOT_PYTHON_PACKAGES = {"python", "pip", "make"}

DECLARED = [*PROJECT["dependencies"], *EXTRAS["dev"]]
CONDA_SPECS = [spec for spec in CONDA["dependencies"] if isinstance(spec, str)]


def pins():
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in LOCK_LINES}


def pinned_version(name):
    (specifier,) = pins()[canonicalize_name(name)].specifier
    return Version(specifier.version)


def make_variable(name):
    return re.search(rf"^{name} := (\S+)$", MAKEFILE, flags=re.MULTILINE).group(1)


def allows(match, version):
    """Whether a conda spec admits a version, by conda's own rules."""
    return VersionSpec(match.version).matches(CondaVersion(version))


@pytest.mark.parametrize("line", LOCK_LINES)
def test_every_line_of_the_lock_is_one_exact_public_version(line):
    assert "://" not in line and "@" not in line
    requirement = Requirement(line)
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and "*" not in specifier.version
    assert Version(specifier.version).local is None
    assert not requirement.extras


def test_the_lock_names_each_package_once():
    assert len(pins()) == len(LOCK_LINES)


def test_the_lock_has_no_options_and_names_no_index():
    text = (paths.ROOT / "requirements.lock").read_text()
    assert "://" not in text and not re.search(r"^\s*-", text, flags=re.MULTILINE)


def test_torch_is_pinned_without_a_local_suffix():
    assert "torch==2.13.0" in LOCK_LINES


@pytest.mark.parametrize("declared", DECLARED)
def test_every_declared_dependency_is_locked_at_a_version_it_allows(declared):
    requirement = Requirement(declared)
    assert canonicalize_name(requirement.name) in pins()
    assert requirement.specifier.contains(pinned_version(requirement.name))


@pytest.mark.parametrize("spec", CONDA_SPECS)
def test_the_conda_environment_allows_what_is_locked(spec):
    match = MatchSpec(spec)
    name = match.name.normalized
    if name in NOT_PYTHON_PACKAGES:
        return
    assert match.version is not None, "a bound"
    locked = pinned_version(PYPI_NAMES.get(name, name))
    assert allows(match, str(locked))


def test_conda_and_pip_bound_a_dependency_alike():
    declared = {canonicalize_name(Requirement(each).name): Requirement(each) for each in PROJECT["dependencies"]}
    for spec in CONDA_SPECS:
        match = MatchSpec(spec)
        name = PYPI_NAMES.get(match.name.normalized, match.name.normalized)
        if name in NOT_PYTHON_PACKAGES:
            continue
        assert name in declared, f"{name} is in environment.yml and not in pyproject.toml"
        for bound in declared[name].specifier:
            if bound.operator == "<":
                assert not allows(match, bound.version), f"{spec} allows {bound.version}, pyproject does not"


def test_python_is_bounded_alike():
    (spec,) = [spec for spec in CONDA_SPECS if spec.split()[0] == "python"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert allows(MatchSpec(spec), "3.11.0") and not allows(MatchSpec(spec), "3.10.9")
    assert "sys.version_info < (3, 11)" in MAKEFILE


def test_the_package_itself_comes_by_pip_in_the_conda_environment():
    (by_pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert by_pip == ["--editable .[dev]"]
    assert "pip" in CONDA_SPECS


def test_mamba_and_triton_are_at_the_versions_that_fit_torch():
    assert make_variable("MAMBA_SSM") == "2.3.1"
    assert make_variable("TRITON") == str(pinned_version("triton")) == "3.7.1"
    assert f"mamba-ssm=={make_variable('MAMBA_SSM')}" in (paths.ROOT / "environment.yml").read_text()


def test_mamba_is_built_by_a_step_of_its_own_only():
    everywhere = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    assert not [each for each in everywhere if "mamba" in each]
    assert not [line for line in LOCK_LINES if "mamba" in line]
    assert not [entry for entry in CONDA["dependencies"] if "mamba" in str(entry)]
    assert re.search(r"--no-build-isolation mamba-ssm==\$\(MAMBA_SSM\)", MAKEFILE)


def test_what_needs_cuda_to_be_imported_is_in_the_gpu_extra_only():
    assert [Requirement(each).name for each in EXTRAS["gpu"]] == ["causal-conv1d"]
    assert "causal-conv1d" not in pins()


def test_ray_is_in_its_extra_only():
    assert [Requirement(entry).name for entry in EXTRAS["cluster"]] == ["ray"]
    assert "ray" not in pins()


USED_WITHOUT_AN_IMPORT = {
    "jupyterlab": "make lab opens it",
    "ipykernel": "runs the notebooks",
    "ipywidgets": "the widgets of notebooks in JupyterLab, progress bars among them",
    "nbconvert": "make docs calls it",
    "einops": "mamba-ssm imports it",
}


@pytest.mark.parametrize("declared", PROJECT["dependencies"])
def test_every_declared_dependency_is_used(declared):
    name = canonicalize_name(Requirement(declared).name)
    module = {"pyyaml": "yaml"}.get(name, name.replace("-", "_"))
    sources = [file for part in ("artifact", "figures") for file in (paths.ROOT / part).rglob("*.py")]
    pattern = re.compile(rf"^\s*(from|import) {module}\b|files\(\"{module}\"\)", re.MULTILINE)
    imported = any(pattern.search(file.read_text(encoding="utf-8")) for file in sources)
    assert imported != (name in USED_WITHOUT_AN_IMPORT), "unused, or no exception any more"


def test_this_environment_is_the_locked_one():
    """An environment of conda's, or one that somebody has changed, is told by name; it may well work."""
    differing = []
    for name in pins():
        marker = pins()[name].marker
        if marker is not None and not marker.evaluate():
            continue
        try:
            installed = Version(version(name)).public
        except PackageNotFoundError:
            installed = "not installed"
        if installed != str(pinned_version(name)):
            differing.append(f"{name} {installed}, locked {pinned_version(name)}")
    if (paths.ROOT / ".venv" / ".installed").exists():
        assert not differing, "make env"
    elif differing:
        pytest.skip(f"not the environment that make env creates: {', '.join(differing)}")
