"""The rules of the house, read from the source: who may import whom, and how large the model's files may grow."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

import llama3_scratch

PACKAGE = Path(llama3_scratch.__file__).parent
SEVEN = {"params", "functional", "model", "cache", "generation", "tokenizer", "chat"}
BESIDE = {"kernels", "padding", "batching", "quantized"}  # of the model, too: what a first reader can skip
WORDS = {"checks", "messages"}
THIRD_PARTY = {"torch"}  # and tqdm, for the progress bar, in messages
# An import inside the function of that name, and nowhere else, may lead from the model to the readers of files.
DOORS = {("model", "from_checkpoint"), ("tokenizer", "__init__")}


@cache
def modules() -> dict[str, Path]:
    """Name within the package -> file: `functional`, `loading.pth`, ..."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


@cache
def imports(name: str, path: Path) -> list[tuple[str, str]]:
    """What a module imports, inside its functions as well: (module or package, function around the import or "")."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    around = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            around |= {id(node): function.name for node in ast.walk(function)}
    package = name.split(".")[:-1] if path.name != "__init__.py" else [part for part in name.split(".") if part]
    found = []
    for node in ast.walk(tree):
        where = around.get(id(node), "")
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], where) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((str(node.module).split(".")[0], where))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] + ([node.module] if node.module else [])
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                found.append(("llama3_scratch." + (inner if inner in modules() else ".".join(base)), where))
    return found


def ours(name: str) -> set[str]:
    """What a module imports from the package."""
    found = [module for module, _ in imports(name, modules()[name])]
    return {module.removeprefix("llama3_scratch.") for module in found if module.startswith("llama3_scratch.")} - {""}


@pytest.mark.parametrize("name", sorted(SEVEN | BESIDE | WORDS))
def test_the_models_files_import_torch_the_standard_library_and_each_other(name):
    allowed = SEVEN | BESIDE | WORDS if name not in WORDS else WORDS
    for module, function in imports(name, modules()[name]):
        if module.startswith("llama3_scratch."):
            inner = module.removeprefix("llama3_scratch.")
            assert inner in allowed or (inner.startswith("loading.") and (name, function) in DOORS), (name, module)
        else:
            tqdm = {"tqdm"} if name == "messages" else set()
            assert module in THIRD_PARTY | tqdm | sys.stdlib_module_names, (name, module)


def test_the_doors_are_the_only_ways_from_the_model_to_files():
    found = {
        (name, function)
        for name in SEVEN | BESIDE | WORDS
        for module, function in imports(name, modules()[name])
        if module.startswith("llama3_scratch.loading")
    }
    assert found == DOORS


def test_nobody_imports_the_runner_or_the_pages_or_the_pictures():
    for name in modules():
        if name.split(".")[0] not in ("__main__", "plots", "readback", "diagrams"):
            allowed = {"pages", "numbering"} if name == "runner" else set()
            pictures = {"plots", "readback", "diagrams"}
            assert not ours(name) & ({"runner", "pages", "lab", "__main__"} | pictures) - allowed, name


def test_there_is_no_circle():
    """Imports inside functions count, the two doors among them."""
    graph = {name: ours(name) for name in modules() if name != "__init__"}  # which lists names, and nobody asks it
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_seven_files_stay_at_800_lines():
    lines = {name: len(modules()[name].read_text(encoding="utf-8").splitlines()) for name in SEVEN}
    assert sum(lines.values()) <= 800, lines


def test_names_of_files_stand_in_one_place():
    from llama3_scratch.loading import files

    names = {value for key, value in vars(files).items() if key.endswith("_NAME") and isinstance(value, str)}
    assert {"params.json", "tokenizer.model", "config.json", "tokenizer.json"} <= names
    for name, path in modules().items():
        if name != "loading.files":
            literals = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
            assert not names & {node.value for node in literals if isinstance(node.value, str)}, name
