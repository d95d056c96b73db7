"""The rules of the house, read from the code itself: who imports whom, who reads which setting, how long a function is."""

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cifar_keras
from cifar_keras import flags
from cifar_keras.config import Setting, settings_of

ROOT = Path(__file__).parents[1]
PACKAGE = Path(cifar_keras.__file__).parent
MODULES = {
    ".".join(["cifar_keras", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text("utf-8"), str(path)) for module, path in MODULES.items()}
RECIPES = sorted(ROOT.glob("experiments/**/*.flags"))
LONGEST_FUNCTION = 50  # lines

Function = ast.FunctionDef | ast.AsyncFunctionDef


def imports_of(tree: ast.Module) -> set[str]:
    """Every name that is imported anywhere in a module, in full: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


IMPORTS = {module: imports_of(tree) for module, tree in TREES.items()}


def third_party() -> set[str]:
    names = {name.partition(".")[0] for imported in IMPORTS.values() for name in imported}
    return names - sys.stdlib_module_names - {"cifar_keras"}


def functions_of(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def test_only_flags_knows_absl() -> None:
    assert [module for module, names in IMPORTS.items() if any(is_within(name, ("absl",)) for name in names)] == [
        "cifar_keras.flags"
    ]


@pytest.mark.parametrize(
    "module", ["config", "errors", "files.paths", "models.backbones", "models", "data", "__init__"]
)
def test_the_bottom_of_the_house_is_standard_library_only(module: str) -> None:
    allowed = (*sys.stdlib_module_names, "cifar_keras.errors", "cifar_keras.models.backbones")
    if module == "__init__":
        # Inside a function alone.
        allowed = (*allowed, "cifar_keras")
    imported = IMPORTS[f"cifar_keras.{module}".removesuffix(".__init__")]
    assert [name for name in sorted(imported) if not is_within(name, allowed)] == []


COMMANDS = ("train", "evaluate", "export", "predict", "explain", "compare", "prepare")


def test_nobody_imports_a_command() -> None:
    commands = tuple(f"cifar_keras.{name}" for name in COMMANDS)
    assert [(module, name) for module, names in IMPORTS.items() for name in names if is_within(name, commands)] == []


def test_the_root_is_small() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {
        *("__init__", "run", "config", "flags", "errors", "command", "api"),
        *COMMANDS,
    }


# What each room may import of the package, from the bottom of the house to its top; all may import errors and config.
DOORS = {
    "files": (),
    "data": ("files",),
    "models": ("files", "data"),
    "exporting": ("files", "data", "models", "command"),  # one of its modules is the program of a process of its own
    "training": ("files", "data", "models", "exporting"),
    "evaluation": ("files", "data", "models", "exporting"),
    "reporting": ("files", "data", "exporting", "evaluation"),
}


def test_there_are_no_other_rooms() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == DOORS.keys()


@pytest.mark.parametrize("room", DOORS)
def test_the_doors_between_rooms(room: str) -> None:
    allowed = tuple(f"cifar_keras.{other}" for other in (room, "errors", "config", *DOORS[room]))
    ours = {
        (module, name)
        for module in MODULES
        if is_within(module, (f"cifar_keras.{room}",))
        for name in IMPORTS[module]
        if name.startswith("cifar_keras.")
    }
    assert ours
    assert [pair for pair in sorted(ours) if not is_within(pair[1], allowed)] == []


def test_importing_the_package_and_its_commands_does_not_import_tensorflow() -> None:
    names = [
        "train",
        "prepare",
        "evaluate",
        "export",
        "explain",
        "compare",
        "predict",
        "config",
        "flags",
        "errors",
        "files.paths",
        "files.environment",
        "files.writing",
        "files.finished_run",
    ]
    program = "import sys, cifar_keras\n" + "".join(f"import cifar_keras.{name}\n" for name in names)
    program += (
        "print([name for name in ('tensorflow', 'keras', 'tensorflow_datasets', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def readers() -> Iterator[ast.AST]:
    """What reads settings: every module but config and flags, and those functions of config that others call."""
    imported = {name for module, names in IMPORTS.items() if module != "cifar_keras.flags" for name in names}
    imported -= {"cifar_keras.config.validate"}  # it reads settings, but does nothing with them
    for module, tree in TREES.items():
        if module == "cifar_keras.config":
            yield from (function for function in functions_of(tree) if f"{module}.{function.name}" in imported)
        elif module != "cifar_keras.flags":
            yield tree


def receivers_of(field: str) -> set[str]:
    """Of every `a.b.field` that is read in the package, the b."""
    found = set()
    for reader in readers():
        for node in ast.walk(reader):
            if isinstance(node, ast.Attribute) and node.attr == field and isinstance(node.ctx, ast.Load):
                owner = node.value
                found.add(
                    owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
                )
    return found


@pytest.mark.parametrize("leaf", settings_of(), ids=lambda leaf: leaf.flag)
def test_every_setting_is_read(leaf: Setting) -> None:
    # What holds a part of the config is called config, settings or like the part; `layer.weights` reads no setting.
    holders = {"config", "settings", leaf.section}
    found = {name for name in receivers_of(leaf.field.name) if name in holders or name.endswith("_config")}
    assert found, f"--{leaf.flag} is read by nobody"


def test_there_are_recipes() -> None:
    assert "quickstart.flags" in [recipe.name for recipe in RECIPES]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_valid_and_has_a_workdir_of_its_own(recipe: Path) -> None:
    assert flags.parse_config(["train", f"--flagfile={recipe}"]).workdir == f"runs/{recipe.stem}"


def test_functions_are_short() -> None:
    lengths = {
        f"{module}.{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for module, tree in TREES.items()
        for function in functions_of(tree)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_functions_are_annotated() -> None:
    bare = []
    for module, tree in TREES.items():
        methods = {id(node) for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for node in kind.body}
        for function in functions_of(tree):
            arguments = function.args
            named = [*arguments.posonlyargs, *arguments.args]
            if id(function) in methods and not any(
                isinstance(decorator, ast.Name) and decorator.id == "staticmethod"
                for decorator in function.decorator_list
            ):
                named = named[1:]  # self or cls
            rest = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
            if function.returns is None or any(
                not argument.annotation for argument in [*named, *arguments.kwonlyargs, *rest]
            ):
                bare.append(f"{module}.{function.name}")
    assert bare == []


def test_everything_public_is_documented() -> None:
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bare = [module for module, tree in TREES.items() if not ast.get_docstring(tree)]
    bare += [
        f"{module}.{node.name}"
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, documented) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert bare == []


def requirements(section: str, option: str) -> dict[str, str]:
    """Name and version range of each requirement."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    lines = [line for line in parser[section][option].splitlines() if line and not line.startswith("#")]
    return {name: line.removeprefix(name) for line in lines for name in re.findall(r"^[\w.-]+", line)}


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    declared = {normalized(name) for name in requirements("options", "install_requires")}
    optional = {
        normalized(name) for extra in ("export", "parquet") for name in requirements("options.extras_require", extra)
    }
    distributions = importlib.metadata.packages_distributions()
    providers = {name: {normalized(provider) for provider in distributions.get(name, [name])} for name in third_party()}
    assert [name for name, provided_by in sorted(providers.items()) if not provided_by & (declared | optional)] == []
    # TFDS imports importlib_resources without declaring it.
    indirect = {"importlib-resources"}
    assert (declared | optional) - {
        provider for provided_by in providers.values() for provider in provided_by
    } == indirect


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("options", "install_requires"),
        ("options.extras_require", "test"),
        ("options.extras_require", "export"),
        ("options.extras_require", "parquet"),
    ],
)
def test_requirements_have_both_bounds_and_a_reason(section: str, option: str) -> None:
    ranges = requirements(section, option)
    assert ranges
    assert [name for name, allowed in ranges.items() if not re.fullmatch(r">=[\d.]+,<[\d.]+", allowed)] == []
    lines = [line.strip() for line in (ROOT / "setup.cfg").read_text("utf-8").splitlines()]
    reasons = [
        lines[lines.index(name + allowed) - 1] for name, allowed in ranges.items() if not name.startswith("types-")
    ]
    assert [reason for reason in reasons if not re.match(r"# \w+", reason)] == []


def test_the_readme_counts_the_lines_on_the_way_to_an_update() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    sentence = re.search(r"read these eight files \(([\d,]+) lines\): (.*?)\n\n", text, re.DOTALL)
    assert sentence
    files = re.findall(r"`([\w/]+\.py)`", sentence[2])
    assert len(files) == 8
    lines = sum(len((PACKAGE / file).read_text("utf-8").splitlines()) for file in files)
    assert lines == int(sentence[1].replace(",", ""))
