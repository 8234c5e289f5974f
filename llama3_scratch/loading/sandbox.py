"""Jinja's sandbox with a meter, for chat templates: a stranger's program that comes to an end.

As transformers sets it up. In the sandbox a template can reach no file and no part of Python. That leaves it time and
memory to waste, so everything it does is metered: each turn of a loop, each call, operator and filter takes steps, by
the size of what it reads, and what it makes takes room. Where either runs out, it is stopped. What the meter cannot
bound (methods and filters of little use to a template) is not offered.
"""

import contextlib
import functools
import json
import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from ..messages import CheckpointError, reason


def _words(text: str) -> set[str]:
    return set(text.split())


# About a second, and about 50 MB; a conversation of a thousand messages adds to both.
STEPS, ROOM = 3_000_000, 48 * 2**20
LONGEST_PRINTED = 2**20  # of a list or a number as text
_METHODS = _words(
    "capitalize casefold copy count endswith find format get index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper items join keys ljust lower lstrip "
    "partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper values zfill"
)
_FILTERS = _words(
    "abs batch capitalize center count d default dictsort e escape first float forceescape format groupby indent "
    "int items join last length list lower map max min reject rejectattr replace reverse round safe select "
    "selectattr sort string sum title trim truncate unique upper urlencode wordcount"
)
_ON_TEXT = _words(
    "capitalize center e escape forceescape format indent lower replace string title trim truncate upper urlencode "
    "wordcount"
)
_ON_ITEMS = _words("batch groupby list map max min reject rejectattr select selectattr sort sum unique")
_BY_EACH = _words("lstrip rfind rindex rpartition rsplit rstrip strip trim")  # slow where what they look for is long
_CHEAP = {"count", "d", "default", "first", "last", "length"}  # whatever the size of what they are given
_DEEP_TESTS = _words("!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lt ne")


class _TooMuch(Exception):
    pass


class _Refused(jinja2.TemplateError):
    pass


class Meter:
    """What one rendering may still do. `printed`: how large a list may be to be written out."""

    def __init__(self, steps: int, room: int, printed: int, stand_ins: frozenset[str]) -> None:
        self.steps, self.room, self.printed, self.stand_ins = steps, room, printed, stand_ins

    def step(self, n: int) -> None:
        self.steps -= n
        if self.steps < 0:
            raise _TooMuch("it takes too long")

    def take(self, n: int) -> None:
        """Room for n bytes that are about to be made."""
        self.room -= n
        if self.room < 0:
            raise _TooMuch("it takes too much memory")
        self.step(n // 16 + 1)

    def seen(self, *values: Any) -> None:
        """Steps for reading these values, all the way down."""
        for value in values:
            self.step(2 + size_of(value, 16 * self.steps) // 16)

    def made(self, value: Any) -> Any:
        self.take(size_of(value, self.room))
        return value

    def print(self, *values: Any) -> None:
        """These values are about to be written out as text."""
        for value in values:
            if not isinstance(value, str) and size_of(value, self.printed) > self.printed:
                raise _TooMuch("it takes too much memory")


_METER: ContextVar[Meter] = ContextVar("meter")


_CONTAINERS: Any = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))


def children(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, _CONTAINERS) else ()


def size_of(value: Any, most: int) -> int:
    """About the bytes that a value takes if nothing in it is shared; no more is counted than a little above `most`."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        value = waiting.pop()
        if isinstance(value, str):
            total += 32 + len(value) * (1 if value.isascii() else 4)
        else:
            total += 32 + (value.bit_length() // 8 if isinstance(value, int) else 0)
            total += 8 * len(value) if isinstance(value, range) else 0
            waiting.extend(children(value))
    return total


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, children(value)), default=0)


@contextlib.contextmanager
def working(path: Path, meter: Meter, hint: str) -> Iterator[None]:
    """What goes wrong in a template, as one sentence; with what to do where it is not the template's own."""
    token = _METER.set(meter)
    try:
        yield
    except _Refused as e:
        raise ValueError(f"{path}: the chat template does not take this conversation ({reason(e)})") from e
    except _TooMuch as e:
        raise CheckpointError(f"{path}: the chat template was stopped, since {e}") from e
    except RecursionError as e:
        raise CheckpointError(f"{path}: the chat template is nested too deeply, or calls itself without end") from e
    except Exception as e:
        line = f"line {e.lineno}, " if isinstance(e, jinja2.TemplateSyntaxError) else ""
        why = f"{line}{reason(e) or type(e).__name__}"
        raise CheckpointError(f"{path}: the chat template fails ({why}); {hint}") from e
    finally:
        _METER.reset(token)


class Template:
    """A template, compiled. nodes: how many its tree has; strings: all that it spells out."""

    def __init__(self, source: str) -> None:
        self.source = source
        environment = _Environment()
        tree = environment.parse(source)
        self.nodes = sum(1 for _ in tree.find_all(nodes.Node))
        self.strings = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        _Metered().visit(tree)
        tree.set_environment(environment)
        code = environment.compile(tree)
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None), None)

    def render(self, values: Mapping[str, Any]) -> str:
        return self._template.render(values)


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> Template:
    return Template(source)


def compiled(source: str, path: Path) -> Template:
    with working(path, Meter(STEPS, ROOM, LONGEST_PRINTED, frozenset()), "download it again"):
        return _compile(source)


class _Generation(Extension):
    """{% generation %} marks what the assistant said, for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """Jinja's, without names that mean something to Python, and written out without what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace has no names that begin with an underscore")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> None:
    _METER.get().print(message)
    raise _Refused(str(message))


def _strftime_now(format: str) -> str:
    if not isinstance(format, str) or len(format) > 100 or re.search(r"\d", format):  # a digit is a width
        raise _TooMuch("its date has a form that is not known here")
    return datetime.now().strftime(format)


@pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML's escapes. A stand-in stays one character, so that it can be exchanged back."""
    meter = _METER.get()
    meter.seen(value)
    meter.print(value)
    widths = [indent if isinstance(indent, int) else len(indent or ""), *map(len, separators or ())]
    if max(widths) > 100:
        raise _TooMuch("it takes too much memory")
    if max(widths) > 1:
        meter.take(size_of(value, meter.room) // 32 * max(widths) * _depth(value))
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii and not text.isascii():
        meter.take(100 * len(text))
        text = re.sub("[^\0-\x7f]", lambda c: c[0] if c[0] in meter.stand_ins else json.dumps(c[0])[1:-1], text)
    made: str = meter.made(text)
    return made


def _check_format(meter: Meter, text: str, args: Iterable[Any]) -> None:
    """A format that can neither make a width of its own nor repeat what it is given without end."""
    args = list(args)
    meter.print(*args)
    nested = "{" in text and any("{" in (spec or "") for _, _, spec, _ in string.Formatter().parse(text))
    if nested or re.search(r"\d{4}|\*", text):
        raise _TooMuch("it asks for a width that is not known here")
    meter.take(len(text) + (text.count("%") + text.count("{")) * (1000 + sum(size_of(arg, meter.room) for arg in args)))


def _check_operation(meter: Meter, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Take steps and room for what a method or filter may do where that can be much more than reading its values."""
    given = [*args, *kwargs.values()]
    if name in _ON_TEXT:
        meter.print(value, *given)
    if name in _BY_EACH:
        meter.step(sum(len(arg) for arg in given if isinstance(arg, str)) * size_of(value, 64 * meter.steps) // 64)
    if name in _ON_ITEMS and isinstance(value, str):  # each character becomes a string
        meter.take(100 * len(value))
    if name in _LIMITS:
        _LIMITS[name](meter, value, given)


def _limit_replace(meter: Meter, value: Any, given: list[Any]) -> None:
    old, new, text = [*map(str, given), "", ""][0], [*map(str, given), "", ""][1], str(value)
    meter.take((text.count(old) if old else len(text) + 1) * 4 * len(new))


def _limit_join(meter: Meter, value: Any, given: list[Any]) -> None:
    """ ",".join(items), and items | join(",") as well."""
    items, separator = (given[0], value) if isinstance(value, str) and given else (value, given[0] if given else "")
    items = list(children(items)) or list(items if isinstance(items, str | range) else ())
    meter.print(separator, *items)
    meter.take(len(items) * 4 * len(str(separator)))


def _limit_split(meter: Meter, value: Any, given: list[Any]) -> None:
    named = given and isinstance(given[0], str) and given[0]
    meter.take(80 * value.count(given[0]) if named else 40 * len(value))


def _limit_words(meter: Meter, value: Any, given: list[Any]) -> None:
    meter.step(len(str(value)) // 4)
    meter.take(40 * len(str(value)))


def _limit_indent(meter: Meter, value: Any, given: list[Any]) -> None:
    width = given[0] if given else 4
    width = abs(width) if isinstance(width, int) else 4 * len(width)
    meter.take((str(value).count("\n") + 1) * (64 + width))


def _limit_widths(meter: Meter, value: Any, given: list[Any]) -> None:
    meter.take(sum(64 * abs(n) for n in given if isinstance(n, int)))


def _limit_round(meter: Meter, value: Any, given: list[Any]) -> None:
    if any(abs(n) > 100 for n in given if isinstance(n, int)):
        raise _TooMuch("it takes too long")


def _limit_attributes(meter: Meter, value: Any, given: list[Any]) -> None:
    """Attributes of attributes without end."""
    if any(isinstance(path, str) and len(path) > 5000 for path in given):
        raise _TooMuch("it takes too long")
    meter.step(
        max([0, *(path.count(".") for path in given if isinstance(path, str))])
        * 4
        * (len(value) if isinstance(value, Sized) else 1)
    )


def _limit_sum(meter: Meter, value: Any, given: list[Any]) -> None:
    _limit_attributes(meter, value, given)
    if any(isinstance(start, list | tuple) for start in given):  # each sum would be a copy
        raise _TooMuch("it takes too long")


_LIMITS: dict[str, Callable[[Meter, Any, list[Any]], None]] = {
    "replace": _limit_replace,
    "join": _limit_join,
    "indent": _limit_indent,
    "round": _limit_round,
    "format": lambda meter, value, given: _check_format(meter, str(value), given),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _limit_split),
    **dict.fromkeys(("batch", "center", "ljust", "rjust", "zfill", "truncate"), _limit_widths),
    **dict.fromkeys(_words("groupby map max min reject rejectattr select selectattr sort unique"), _limit_attributes),
    **dict.fromkeys(("title", "urlencode", "wordcount"), _limit_words),
    "sum": _limit_sum,
}


def _metered(name: str, function: Any, deep: bool) -> Callable[..., Any]:
    """A filter or test of Jinja's that takes steps and room."""
    passes = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step(10)
        if deep:
            meter.seen(value, *args, *kwargs.values())
            _check_operation(meter, name, value, args, kwargs)
        passed = {None: (), "context": (context,), "environment": (context.environment,)}
        first = passed.get(passes and passes.name, (context.eval_ctx,))
        result = function(*first, value, *args, **kwargs)
        if isinstance(result, Iterator):
            result = list(_metered_items(meter, result))
        return meter.made(result) if deep else result

    return metered


def _metered_items(meter: Meter, items: Iterator[Any]) -> Iterator[Any]:
    """What a filter yields, at a cost for each."""
    for item in items:
        meter.take(32)
        yield item


@pass_context
def _charge(context: Context, steps: int) -> bool:
    _METER.get().step(steps)
    return True


@pass_context
def _literal(context: Context, length: int) -> str:
    """Text of the template itself is about to be written out."""
    _METER.get().take(length)
    return ""


@pass_context
def _emit(context: Context, value: Any) -> Any:
    meter = _METER.get()
    meter.print(value)
    if not isinstance(value, str | Undefined):
        value = str(value)
    return meter.made(value)


@pass_context
def _seen(context: Context, value: Any) -> Any:
    _METER.get().seen(value)
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _METER.get().made(value)


@pass_context
def _concat(context: Context, values: tuple[Any, ...]) -> str:
    meter = _METER.get()
    meter.print(*values)
    meter.seen(values)
    text: str = meter.made((markup_join if context.eval_ctx.autoescape else str_join)(values))
    return text


_METERS = {"!charge": _charge, "!literal": _literal, "!emit": _emit, "!seen": _seen, "!made": _made, "!concat": _concat}


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox as transformers sets it up, with a meter on calls, operators, filters and tests."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False)
        self.filters = {name: _metered(name, self.filters[name], name not in _CHEAP) for name in _FILTERS}
        self.filters |= {"tojson": _to_json, **_METERS}
        self.tests = {name: _metered(name, test, name in _DEEP_TESTS) for name, test in self.tests.items()}
        self.globals = {name: self.globals[name] for name in ("range", "cycler", "joiner")} | {
            "dict": _dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step(20)
        if isinstance(obj, Macro) and not obj.catch_varargs and not obj.catch_kwargs:
            return super().call(context, obj, *args, **kwargs)
        meter.seen(*args, *kwargs.values())
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int | float | list | tuple | dict | set | type):
            if name not in _METHODS or isinstance(owner, bytes | int | float | type):
                raise jinja2.exceptions.SecurityError(f"{type(owner).__name__}.{name} is not offered to chat templates")
            meter.seen(owner)
            _check_operation(meter, name, owner, args, kwargs)
        return meter.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.seen(left, right)
        if operator == "%" and isinstance(left, str):
            _check_format(meter, left, [right])
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > 10_000 if operator == "**" else max(abs(left), abs(right)) > 1 << 5000:
                raise _TooMuch("its numbers grow too large")
        elif operator == "*":
            value, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                meter.take(max(0, times) * (4 if isinstance(value, str) else 32) * len(value))
        return meter.made(super().call_binop(context, operator, left, right))


class _Metered(NodeTransformer):
    """Puts the meter into a template's tree: at the head of what can repeat, and around what the sandbox leaves to
    Python: text that is written out, "~", comparisons, literals and slices.
    """

    def _around(self, node: nodes.Expr, name: str) -> nodes.Expr:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _head(self, node: Any) -> nodes.ExprStmt:
        steps = 1 + sum(1 for _ in node.find_all(nodes.Node))
        charge = self._around(nodes.Const(steps, lineno=node.lineno), "!charge")
        return nodes.ExprStmt(charge, lineno=node.lineno)

    def _body(self, node: Any) -> Any:
        head = self._head(node)
        self.generic_visit(node)
        node.body.insert(0, head)
        return node

    visit_Macro = visit_CallBlock = visit_Block = _body

    def visit_For(self, node: nodes.For) -> nodes.For:
        charge = self._head(node).node
        self._body(node)
        if node.test is not None:
            node.test = nodes.And(charge, node.test, lineno=node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        literals = [part for part in node.nodes if isinstance(part, nodes.TemplateData)]
        written = [part if isinstance(part, nodes.TemplateData) else self._around(part, "!emit") for part in node.nodes]
        length = nodes.Const(32 + 4 * sum(len(part.data) for part in literals), lineno=node.lineno)
        node.nodes = [self._around(length, "!literal"), *written] if literals else written
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._around(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "!concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = self._around(node.expr, "!seen")
        for operand in node.ops:
            operand.expr = self._around(operand.expr, "!seen")
        return node

    def visit_List(self, node: Any) -> nodes.Expr:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._around(node, "!made")

    visit_Tuple = visit_Dict = visit_List

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._around(self._around(node.node, "!seen"), "!made")
        elif not isinstance(node.arg, nodes.Const):
            node.arg = self._around(node.arg, "!seen")  # a tuple as a key is read, all the way down
        return node
