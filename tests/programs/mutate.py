"""How strong are the tests? Change one thing of the package at a time, and see whether a test notices.

    python tests/programs/mutate.py                                  # the model's files and their companions
    python tests/programs/mutate.py generation.py --sample 100       # a hundred mutants of one file
    python tests/programs/mutate.py loading/meta.py --tests tests/loading

One operator, comparison, constant, condition, argument, returned value or statement is changed, in the syntax tree.
Docstrings, annotations, the sentences of messages and `__all__` stay. A mutant within a function takes the function's
place in a fork of a process in which everything is imported and collected; only the tests that come through that
function run there, until one fails. Other mutants (defaults, fields, decorators) are imported in the place of their
module, in a fork of a process that knows torch and transformers, and all tests run, those of the module first. What
takes longer than it may counts as caught.

Survivors are printed; those in mutants_kept.json, found by function and statement, are known not to matter, and why.
Not on Windows, which has no forks.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; forks may not share threads

import pytest  # these three are known to every fork, so that none has to wait for them
import torch
from tqdm import tqdm
from transformers.models.llama import modeling_llama  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "llama3_scratch"
KEPT = Path(__file__).with_name("mutants_kept.json")
MODEL = ("params", "functional", "model", "cache", "generation", "tokenizer", "chat")
COMPANIONS = ("kernels", "padding", "batching", "checks")
TESTS = ["tests/model", "tests/loading/test_tokenizer_json.py", "tests/loading/test_huggingface.py"]
SCREEN = os.fdopen(os.dup(2), "w")  # where progress is shown, also from processes that are silent otherwise
MEMORY = 4 << 30  # bytes that a mutant may take beyond what the process has

SWAPPED = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.Mult],
    ast.Pow: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}
MESSAGES = {"expect", "warn", "progress"}  # calls whose strings are sentences for people
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Mutant:
    path: Path
    function: str  # dotted name within the module; "" outside of functions
    line: int
    was: str  # the statement, in one line
    now: str
    tree: ast.Module = field(repr=False)  # the whole module, changed
    in_body: bool  # within the body of a function, which can be exchanged alone
    first: int = 0  # lines of the outermost function
    last: int = 0

    @property
    def module(self) -> str:
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts)

    def __str__(self) -> str:
        where = f"{self.path.relative_to(PACKAGE)}:{self.line} {self.function}"
        return f"{where}\n  - {self.was}\n  + {self.now}"


# Making mutants


def mutants_of(path: Path) -> list[Mutant]:
    tree = ast.parse(path.read_text())
    return list(_Walk(path, tree).module())


def one_line(node: ast.stmt | None) -> str:
    """A statement, without what is inside of it."""
    if node is None or isinstance(node, ast.Pass):
        return "pass"
    lines = ast.unparse(node).splitlines()
    return next(line for line in lines if not line.startswith("@")) if isinstance(node, FUNCTIONS) else lines[0]


class _Walk:
    """Goes through a module. Each change is made in the tree, the tree is copied, and the change is taken back."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path, self.tree = path, tree
        self.names: list[str] = []  # classes and functions around the statement
        self.outer: ast.AST | None = None  # the outermost function
        self.statement: ast.stmt | None = None
        self.in_body = False
        imported = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        self.modules = {(a.asname or a.name).split(".")[0] for n in imported for a in n.names}

    def module(self) -> Iterator[Mutant]:
        yield from self.block(self.tree.body)

    def changed(self, holder: Any, name: str, new: Any, index: int | None = None) -> Iterator[Mutant]:
        """The mutant with `new` at holder.name, or at holder.name[index]."""
        assert self.statement is not None
        was, line = one_line(self.statement), self.statement.lineno
        values = getattr(holder, name)
        old = values if index is None else values[index]
        if index is None:
            setattr(holder, name, new)
        else:
            values[index] = new
        # A statement that was exchanged as a whole is no longer `self.statement`.
        now = one_line(new if old is self.statement else self.statement)
        tree = ast.fix_missing_locations(copy.deepcopy(self.tree))
        if index is None:
            setattr(holder, name, old)
        else:
            values[index] = old
        if now != was or old is not self.statement:
            first, last = (self.outer.lineno, self.outer.end_lineno) if self.outer else (0, 0)  # type: ignore
            if self.outer is not None and self.outer.decorator_list:  # type: ignore
                first = self.outer.decorator_list[0].lineno  # type: ignore
            yield Mutant(self.path, ".".join(self.names), line, was, now, tree, self.in_body, first, last or 0)

    def dropped(self, holder: Any, name: str, index: int) -> Iterator[Mutant]:
        """The mutant without holder.name[index]."""
        values = getattr(holder, name)
        yield from self.changed(holder, name, [*values[:index], *values[index + 1 :]])

    def block(self, body: list[ast.stmt]) -> Iterator[Mutant]:
        for i, statement in enumerate(body):
            outside, self.statement = self.statement, statement
            yield from self.statements(body, i, statement)
            self.statement = outside

    def statements(self, body: list[ast.stmt], i: int, s: ast.stmt) -> Iterator[Mutant]:
        if isinstance(s, ast.Import | ast.ImportFrom | ast.Pass | ast.Global | ast.Nonlocal):
            return
        if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant):  # a docstring
            return
        if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "__all__":
            return
        if isinstance(s, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from self.definition(s)
            return
        if isinstance(s, ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Delete):
            yield from self.instead(body, i, ast.Pass())
        if isinstance(s, ast.Return) and s.value is not None and ast.unparse(s.value) != "None":
            yield from self.changed(s, "value", ast.Constant(None))
        if isinstance(s, ast.Continue | ast.Break):
            yield from self.instead(body, i, ast.Pass())
        if isinstance(s, ast.If | ast.While):
            yield from self.condition(s)
        if isinstance(s, ast.AugAssign):
            yield from self.operators(s, "op")
        if isinstance(s, ast.Raise):
            return  # the rest is the sentence
        for name, value in ast.iter_fields(s):
            if name in ("body", "orelse", "finalbody", "handlers", "annotation"):
                continue
            yield from self.field(s, name, value)
        for name in ("body", "orelse", "finalbody"):
            yield from self.block(getattr(s, name, []))
        for handler in getattr(s, "handlers", []):
            yield from self.block(handler.body)

    def instead(self, body: list[ast.stmt], i: int, new: ast.stmt) -> Iterator[Mutant]:
        class Holder:  # of a list that belongs to a node
            statements = body

        ast.copy_location(new, body[i])
        yield from self.changed(Holder, "statements", new, i)

    def definition(self, s: Any) -> Iterator[Mutant]:
        names, outer, in_body = [*self.names], self.outer, self.in_body
        for decorator in s.decorator_list:
            yield from self.expression(decorator)
        if isinstance(s, FUNCTIONS):
            for name in ("defaults", "kw_defaults"):
                yield from self.field(s.args, name, getattr(s.args, name))
            self.names.append(s.name)
            if self.outer is None:
                self.outer = s
            self.in_body = True
        else:
            self.names.append(s.name)
        yield from self.block(s.body)
        self.names, self.outer, self.in_body = names, outer, in_body

    def condition(self, holder: Any) -> Iterator[Mutant]:
        for truth in (True, False):
            if not (isinstance(holder, ast.While) and truth):
                yield from self.changed(holder, "test", ast.Constant(truth))

    def operators(self, holder: Any, name: str, index: int | None = None) -> Iterator[Mutant]:
        old = getattr(holder, name) if index is None else getattr(holder, name)[index]
        for kind in SWAPPED.get(type(old), ()):
            yield from self.changed(holder, name, kind(), index)

    def field(self, holder: Any, name: str, value: Any) -> Iterator[Mutant]:
        values = value if isinstance(value, list) else [value]
        for index, node in enumerate(values):
            if isinstance(node, ast.expr | ast.comprehension | ast.keyword | ast.withitem | ast.Slice):
                for new in self.others(node):
                    yield from self.changed(holder, name, new, index if isinstance(value, list) else None)
                yield from self.expression(node)

    def others(self, node: ast.AST) -> Iterator[ast.expr]:
        """What an expression can be exchanged for."""
        if isinstance(node, ast.Constant):
            kind = type(node.value)
            if kind is bool:
                yield ast.Constant(not node.value)
            elif kind in (int, float):
                yield ast.Constant(node.value + 1)
            elif kind is str:
                yield ast.Constant(node.value + "?")
        if isinstance(node, ast.UnaryOp):
            yield node.operand
        if isinstance(node, ast.IfExp):
            yield node.body
            yield node.orelse
        if isinstance(node, ast.BoolOp):
            for i in range(len(node.values)):
                rest = node.values[:i] + node.values[i + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            if not (isinstance(value, ast.Name) and value.id in {*self.modules, "self", "cls"}):
                yield value  # x.float() -> x

    def expression(self, node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.Lambda):
            yield from self.field(node, "body", node.body)
            return
        if isinstance(node, ast.Constant | ast.Name):
            return
        if isinstance(node, ast.JoinedStr):
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    yield from self.field(part, "value", part.value)
            return
        if isinstance(node, ast.BinOp | ast.BoolOp):
            yield from self.operators(node, "op")
        if isinstance(node, ast.Compare):
            for i in range(len(node.ops)):
                yield from self.operators(node, "ops", i)
        if isinstance(node, ast.Call):
            yield from self.call(node)
            return
        if isinstance(node, ast.comprehension):
            for i in range(len(node.ifs)):
                yield from self.dropped(node, "ifs", i)
        for name, value in ast.iter_fields(node):
            yield from self.field(node, name, value)

    def call(self, node: ast.Call) -> Iterator[Mutant]:
        called = ast.unparse(node.func).split(".")[-1]
        yield from self.expression(node.func)
        if called in ("TypeVar", "cast"):
            return
        for i in range(len(node.keywords)):
            yield from self.dropped(node, "keywords", i)
        if len(node.args) > 1 and called != "isinstance":
            first, second, *rest = node.args
            if called not in ("max", "min") and not any(isinstance(a, ast.Starred) for a in (first, second)):
                yield from self.changed(node, "args", [second, first, *rest])
            yield from self.dropped(node, "args", len(node.args) - 1)
        for name in ("args", "keywords"):
            for i, value in enumerate(list(getattr(node, name))):
                inner = value.value if isinstance(value, ast.keyword) else value
                sentence = isinstance(inner, ast.JoinedStr) or (
                    isinstance(inner, ast.Constant) and type(inner.value) is str
                )
                if called in MESSAGES and sentence:
                    continue
                if isinstance(value, ast.keyword):
                    yield from self.field(value, "value", value.value)
                else:
                    for new in self.others(value):
                        yield from self.changed(node, "args", new, i)
                    yield from self.expression(value)


# Putting one in the place of what it was made from


class Import(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports a mutant in the place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(mutant.module, str(mutant.path))
        self.mutant = mutant

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name == self.mutant.module:
            return importlib.util.spec_from_file_location(name, self.mutant.path, loader=self)
        return None

    def get_code(self, name: str) -> CodeType:
        return compile(self.mutant.tree, str(self.mutant.path), "exec")


def exchange(mutant: Mutant) -> None:
    """Give the outermost function around the change the code of the mutant. ValueError where that cannot be done."""
    new = compile(mutant.tree, str(mutant.path), "exec")
    function: Any = sys.modules[mutant.module]
    for name in mutant.function.split("."):
        function = vars(function)[name]
        new = next((c for c in new.co_consts if isinstance(c, CodeType) and c.co_name == name), None)
        if new is None:
            raise ValueError("not found")
        while not isinstance(function, FunctionType | type | ModuleType) or hasattr(function, "__wrapped__"):
            function = next(
                vars(function)[k] if k == "__wrapped__" else getattr(function, k)
                for k in ("__wrapped__", "__func__", "fget")
                if hasattr(function, k)
            )
        if isinstance(function, FunctionType):
            break
    function.__code__ = new


# Running tests


class Watch:
    """Notes which functions of the package a test comes through, and how long it takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.seen: dict[str, set[tuple[str, int]]] = defaultdict(set)  # test -> (file, line of a function)
        self.fixtures: dict[Any, set[tuple[str, int]]] = defaultdict(set)
        self.failed: list[str] = []
        self.into: list[set] = []

    def profile(self, frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            for found in self.into:
                found.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        self.into.append(self.fixtures[fixturedef])
        try:
            return (yield)
        finally:
            self.into.pop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        found, started = set(), time.perf_counter()
        self.into = [found]
        sys.setprofile(self.profile)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            self.seconds[item.nodeid] = time.perf_counter() - started
            for definitions in item._fixtureinfo.name2fixturedefs.values():
                found |= self.fixtures[definitions[-1]]
            self.seen[item.nodeid] = found

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Stop:
    """Ends the process with the first test that fails, or takes much longer than it did."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = seconds or {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 10 + 5 * self.seconds.get(nodeid, 10))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os._exit(1)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            os._exit(1)


def fork(job: Callable[[], int], alone: bool = True) -> int:
    """Do the job in a process of its own, which ends with the number that it returns, and says nothing."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        if alone:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        code = job()
    except SystemExit as e:
        code = int(bool(e.code))
    except BaseException:
        code = 1
    finally:
        os._exit(code)


def limited() -> None:
    """What a mutant asks for must not fill the machine."""
    data = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    torch.set_num_threads(1)


def run_all(
    jobs: list[tuple[Mutant, Callable[[Path], int], float]], workers: int, what: str
) -> list[tuple[Mutant, str]]:
    """Each job in a fork, `workers` at a time: what came of it, "caught", "survived", "late" or "elsewhere"."""
    results, running = [], {}
    waiting = list(reversed(jobs))
    temporary = Path(tempfile.mkdtemp(prefix="mutate-"))
    bar = tqdm(total=len(jobs), desc=what, unit="mutant", file=SCREEN, dynamic_ncols=True)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                mutant, job, seconds = waiting.pop()
                folder = temporary / str(len(waiting))
                child = fork(lambda job=job, folder=folder: job(folder))
                running[child] = mutant, folder, time.monotonic() + seconds
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                for child, (_, _, limit) in running.items():
                    if time.monotonic() > limit:
                        os.kill(child, signal.SIGKILL)
                time.sleep(0.005)
                continue
            mutant, folder, limit = running.pop(ended)
            shutil.rmtree(folder, ignore_errors=True)
            code = os.waitstatus_to_exitcode(status)
            late = code == -signal.SIGALRM or (code < 0 and time.monotonic() > limit)
            results.append((mutant, "late" if late else {0: "survived", 4: "elsewhere"}.get(code, "caught")))
            if code == 0:
                bar.write(f"survived: {mutant}", file=SCREEN)
            bar.update()
            bar.set_postfix(survived=sum(r == "survived" for _, r in results))
    except KeyboardInterrupt:
        bar.write("interrupted; this is what is known so far", file=SCREEN)
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        shutil.rmtree(temporary, ignore_errors=True)
        bar.close()
    return results


class Session:
    """pytest, with everything collected: exchanges function after function in forks of it."""

    def __init__(self, mutants: list[Mutant], workers: int, results: Path) -> None:
        self.mutants, self.workers, self.results = mutants, workers, results

    def pytest_runtestloop(self, session: Any) -> bool:
        torch.set_num_threads(1)
        watch = self.watched(session)
        failing = sorted(set(watch.failed))
        if failing:
            print("these fail without any change, and are left out:", *failing, sep="\n  ", file=SCREEN, flush=True)
        jobs = []
        for mutant in self.mutants:
            lines = range(mutant.first, mutant.last + 1)
            items = [
                item
                for item in session.items
                if item.nodeid not in failing
                and any(f == str(mutant.path) and line in lines for f, line in watch.seen[item.nodeid])
            ]
            own = f"test_{mutant.path.stem}"
            items.sort(key=lambda i: watch.seconds[i.nodeid])
            rank = {}
            for item in sorted(items, key=lambda i: not i.path.name.startswith(own)):
                rank.setdefault(item.path, len(rank))
            items.sort(key=lambda i: rank[i.path])
            limit = 60 + 5 * sum(watch.seconds[i.nodeid] for i in items)
            jobs.append(
                (
                    mutant,
                    lambda folder, m=mutant, items=items: self.tried(session, m, items, watch.seconds, folder),
                    limit,
                )
            )
        found = run_all(jobs, self.workers, "in functions")
        self.results.write_bytes(pickle.dumps((failing, [(self.mutants.index(m), r) for m, r in found])))
        return True

    def watched(self, session: Any) -> Watch:
        """All tests, once, in a fork: this process stays as it is."""
        into = self.results.with_suffix(".watch")

        def job() -> int:
            watch = Watch()
            session.config.pluginmanager.register(watch)
            with tqdm(session.items, desc="unchanged", unit="test", file=SCREEN, dynamic_ncols=True) as items:
                for item, following in zip(items, [*session.items[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            into.write_bytes(pickle.dumps((dict(watch.seconds), dict(watch.seen), watch.failed)))
            return 0

        os.waitpid(fork(job), 0)
        watch = Watch()
        if into.exists():
            watch.seconds, watch.seen, watch.failed = pickle.loads(into.read_bytes())
        else:
            watch.failed = ["(it ended)"]
        return watch

    def tried(self, session: Any, mutant: Mutant, items: list, seconds: dict[str, float], folder: Path) -> int:
        limited()
        folder.mkdir()
        session.config._tmp_path_factory._basetemp = folder
        try:
            exchange(mutant)
        except (ValueError, KeyError, StopIteration):
            return 4
        session.config.pluginmanager.register(Stop(seconds))
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return 0


def imported(mutant: Mutant, tests: list[str], failing: list[str], folder: Path) -> int:
    """All tests over the package with this module in it, the module's own tests first."""
    limited()
    sys.meta_path.insert(0, Import(mutant))
    own = [str(p.relative_to(ROOT)) for p in ROOT.glob(f"tests/*/test_{mutant.path.stem}*.py")]
    left_out = [f"--deselect={test}" for test in failing]
    return pytest.main([*OPTIONS, *left_out, "-x", f"--basetemp={folder}", *own, *tests], plugins=[Stop()])


OPTIONS = ["-q", "--capture=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]


# What came out


def kept(mutant: Mutant, reasons: list[dict]) -> str | None:
    """The reason for which a survivor may stay, if there is one."""
    for r in reasons:
        same = r["file"] == str(mutant.path.relative_to(PACKAGE)) and r["function"] == mutant.function
        if same and r["was"] == mutant.was and r["now"] in ("*", mutant.now):
            return r["reason"]
    return None


def report(results: list[tuple[Mutant, str]], reasons: list[dict]) -> int:
    survivors = [m for m, r in results if r == "survived"]
    left = [m for m in survivors if not kept(m, reasons)]
    print(f"\n{'file':24} {'mutants':>8} {'caught':>8} {'late':>6} {'kept':>6} {'left':>6}")
    paths = list(dict.fromkeys(m.path for m, _ in results))
    for path in [*paths, None]:
        of = [(m, r) for m, r in results if path in (m.path, None)]
        late = sum(r == "late" for _, r in of)
        alive = [m for m, r in of if r == "survived"]
        open_ones = sum(m in left for m in alive)
        name = str(path.relative_to(PACKAGE)) if path else "together"
        caught = len(of) - len(alive)
        print(f"{name:24} {len(of):8} {caught:8} {late:6} {len(alive) - open_ones:6} {open_ones:6}")
    for mutant in left:
        print(f"\n{mutant}")
    return 1 if left else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files within llama3_scratch/ (default: the model's)")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tests", nargs="+", default=TESTS)
    parser.add_argument("--function", help="mutants of this function alone")
    parser.add_argument("--list", action="store_true", help="show the mutants, and run nothing")
    parser.add_argument("--json", type=Path, help="write the survivors here, too")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    files = options.files or [f"{name}.py" for name in (*MODEL, *COMPANIONS)]
    mutants = [m for name in files for m in mutants_of(PACKAGE / name)]
    if options.function:
        mutants = [m for m in mutants if m.function == options.function]
    if options.sample:
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    if options.list:
        print("\n".join(map(str, mutants)), f"\n{len(mutants)} mutants")
        return 0

    inner = [m for m in mutants if m.in_body]
    results: list[tuple[Mutant, str]] = []
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        into = Path(folder) / "results"

        def session() -> int:
            plugin = Session(inner, options.workers, into)
            return pytest.main([*OPTIONS, f"--basetemp={folder}/session", *options.tests], plugins=[plugin])

        child = fork(session, alone=False)
        try:
            os.waitpid(child, 0)
        except KeyboardInterrupt:  # which the child has got, too
            interrupted = True
            os.waitpid(child, 0)
        if not into.exists():
            print("the tests could not be collected")
            return 2
        failing, found = pickle.loads(into.read_bytes())
        results += [(inner[i], r) for i, r in found if r != "elsewhere"]
        outer = [m for m in mutants if not m.in_body] + [inner[i] for i, r in found if r == "elsewhere"]
        jobs = [(m, lambda f, m=m: imported(m, options.tests, failing, f), 300.0) for m in outer]
        if not interrupted:
            results += run_all(jobs, options.workers, "elsewhere")
    reasons = json.loads(KEPT.read_text()) if KEPT.exists() else []
    if options.json:
        alive = [m for m, r in results if r == "survived"]
        entries = [
            {
                "file": str(m.path.relative_to(PACKAGE)),
                "function": m.function,
                "was": m.was,
                "now": m.now,
                "reason": kept(m, reasons) or "",
            }
            for m in alive
        ]
        options.json.write_text(json.dumps(entries, indent=1, ensure_ascii=False))
    return report(results, reasons)


if __name__ == "__main__":
    sys.exit(main())
