"""Which thing a notebook holds against what, and which pictures it draws of what: read from its cells."""

import ast
import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cache

from cells import tags
from nbformat import NotebookNode

COMPARED = ("assert_close", "equal", "allclose", "isclose")
GIVEN = ("torch", "math", "F", "functional", "params", "weights", "tokens", "tokenizer", "ckpt", "seq", "range", "len")
WIDEST = 0.1  # a tolerance that is typed in


def proofs(notebook: NotebookNode) -> list[dict]:
    """In order: the heading, the statement, the loops around it, and what its names were last set to."""
    return statements(notebook, is_proof, "holds")


def pictures(notebook: NotebookNode) -> list[dict]:
    """In order: the heading, the call that draws, and what the names in it were last set to."""
    return statements(notebook, is_picture, "shows")


def statements(notebook: NotebookNode, wanted: Callable[[ast.stmt], bool], word: str) -> list[dict]:
    found, heading, known = [], "", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1] if headings else heading
            continue
        if {"exercise", "check"} & set(tags(cell)):
            continue  # these are held by their wrong answers
        for statement, simple, inner in parsed(cell.source):
            for node, around in simple:
                if wanted(node):
                    told = {"under": heading, word: one_line(node, cell.source)}
                    if around:
                        told["for"] = around
                    found.append(told | {"where": definitions(node, known | inner, loop_names(statement))})
            known |= inner
    return found


@cache
def parsed(source: str) -> list[tuple[ast.stmt, list[tuple[ast.stmt, list[str]]], dict[str, str]]]:
    """Each statement of a cell, the simple ones in it with their loops, and what it sets names to."""
    body = ast.parse(source).body
    return [(statement, [*with_loops(statement, source)], set_by(statement, source)) for statement in body]


def one_line(node: ast.AST, source: str) -> str:
    """As it is written, whatever the Python that reads it, but for the line breaks."""
    text = " ".join((ast.get_source_segment(source, node) or "").split())
    return re.sub(r",? ([)\]}])", r"\1", re.sub(r"([(\[{]) ", r"\1", text))


def with_loops(node: ast.AST, source: str, around: tuple[str, ...] = ()) -> Iterator[tuple[ast.stmt, list[str]]]:
    """Every simple statement in a statement, with the loops and conditions that it stands in."""
    if isinstance(node, (ast.For, ast.While, ast.If, ast.With, ast.FunctionDef)):
        head = one_line(node, source).split(one_line(node.body[0], source))[0].strip()
        for child in [*node.body, *getattr(node, "orelse", [])]:
            yield from with_loops(child, source, (*around, head))
    elif isinstance(node, ast.stmt):
        yield node, list(around)


def loop_names(node: ast.AST) -> set[str]:
    """Names that run through something, and so have no one value."""
    targets = [n.target for n in ast.walk(node) if isinstance(n, (ast.For, ast.comprehension))]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def is_proof(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Expr):
        return False
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    if called(node.value) in COMPARED or any(called(call) in COMPARED for call in calls):
        return True
    if called(node.value) != "print":
        return False
    # A difference that is printed, or whether two things are equal.
    return any(
        (called(call) == "max" and "abs()" in ast.unparse(call) and has_difference(call)) for call in calls
    ) or any(isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.Eq) for n in ast.walk(node))


def is_picture(node: ast.stmt) -> bool:
    calls = [ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)]
    return any(
        re.match(r"(plots|diagrams)\.", call) and call not in ("plots.token_labels", "plots.label") for call in calls
    )


def called(node: ast.AST) -> str:
    return ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""


def has_difference(node: ast.AST) -> bool:
    return any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Sub) for n in ast.walk(node))


def set_by(statement: ast.stmt, source: str) -> dict[str, str]:
    """Name -> what a statement of the top level sets it to."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        text = one_line(statement, source)
        return {statement.name: f"{text.split(':')[0]} ({mark(text)})"}
    found: dict[str, str] = {}
    for node in ast.walk(statement):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            text = one_line(node, source)
            told = text if len(text) <= 150 else f"{text[:140]}... ({mark(text)})"
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            found |= dict.fromkeys((name.id for name in names), told)
    return found


def mark(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=3).hexdigest()


def definitions(node: ast.AST, known: dict[str, str], running: set[str]) -> list[str]:
    """What the names in a statement were last set to, and those that the tolerances among them are made of."""
    skipped = running | set(GIVEN)
    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id not in skipped]
    told: dict[str, None] = {}
    for name in names:
        if name in known:
            told[known[name]] = None
        for deeper in tolerance_of(known.get(name, "")):
            told[known.get(deeper, deeper)] = None
        while (other := alias(known.get(name, ""))) and other[1] in known and known[other[1]] not in told:
            name = other[1]
            told[known[name]] = None
    return list(told)


def tolerance_of(definition: str) -> list[str]:
    if "rtol" not in definition and "atol" not in definition:
        return []
    try:
        tree = ast.parse(definition)
    except SyntaxError:
        return []  # shortened
    return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]


def hollow(proof: dict) -> str:
    """Why a proof proves nothing; empty if it can fail."""
    node = ast.parse(proof["holds"]).body[0]
    aliases = dict(filter(None, map(alias, proof["where"])))
    if isinstance(node, ast.Assert) and not any(isinstance(n, (ast.Name, ast.Attribute)) for n in ast.walk(node.test)):
        return "asserts a constant"
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or):
        constant = [value for value in node.test.values if isinstance(value, ast.Constant)]
        if constant:
            return "asserts a constant"
    for part in ast.walk(node):
        sides: list[ast.expr] = []
        if isinstance(part, ast.Call) and called(part) in COMPARED:
            sides = part.args[:2]
            if isinstance(part.func, ast.Attribute) and len(sides) == 1:
                sides = [part.func.value, *sides]
            for keyword in part.keywords:
                typed_in = isinstance(keyword.value, ast.Constant) and keyword.arg in ("rtol", "atol")
                if typed_in and keyword.value.value > WIDEST:
                    return f"{keyword.arg} of {keyword.value.value}: anything agrees"
        elif isinstance(part, ast.Compare):
            sides = [part.left, *part.comparators]
        plain = [resolved(side, aliases) for side in sides]
        if len(plain) > 1 and len(set(plain)) < len(plain):
            return f"a thing held against itself: {ast.unparse(part)}"
    return ""


def alias(definition: str) -> tuple[str, str] | None:
    """`a = b`, or what copies b."""
    try:
        [node] = ast.parse(definition).body
    except (SyntaxError, ValueError):
        return None  # nothing, a function, or too long to be one
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, bare(node.value)
    return None


def bare(node: ast.expr) -> str:
    while isinstance(node, ast.Call) and called(node) in ("clone", "float", "detach", "double", "contiguous", "copy"):
        if not isinstance(node.func, ast.Attribute) or node.args:
            break
        node = node.func.value
    return ast.unparse(node)


def resolved(node: ast.expr, aliases: dict[str, str]) -> str:
    name, seen = bare(node), set()
    while name in aliases and name not in seen:
        seen.add(name)
        name = aliases[name]
    return name
