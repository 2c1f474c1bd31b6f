"""Which mutants a module has: those of cosmic-ray's operators, and of two of ours."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import OPERATOR_PROVIDERS, get_operator, operator_names
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, WorkItem
from parso.python.tree import Name

Position = tuple[tuple[int, int], tuple[int, int]]


class RemoveStatement(Operator):  # type: ignore[misc]
    """Leave out a simple statement; of ``return x`` only the value. Imports and docstrings stay.

    ``return True`` and ``return False`` do not become ``return None``, which all who ask take for False.
    """

    _LEFT = ("import_name", "import_from", "string", "strings", "name", "operator")

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Yield where *node* is a statement."""
        if node.type == "simple_stmt":
            statement = node.children[0]
            is_word = statement.type == "return_stmt" and statement.children[1].type == "keyword"
            if statement.type not in self._LEFT and not is_word:
                yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Leave it out."""
        statement = node.children[0]
        if statement.type == "return_stmt":
            statement.children[1] = _name("None", statement.children[1])
        else:
            node.children[0] = _name("pass", statement)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Show what it does."""
        return (Example("f()\n", "pass\n"), Example("def f(): return 1\n", "def f(): return None\n"))


class NoneForArgument(Operator):  # type: ignore[misc]
    """Pass None instead of an argument. Numbers and booleans have operators of their own."""

    _LEFT = ("number", "keyword")

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Yield where *node* is a call."""
        for holder, place in self._arguments(node):
            yield holder.children[place].start_pos, holder.children[place].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Replace the argument."""
        holder, place = list(self._arguments(node))[index]
        holder.children[place] = _name("None", holder.children[place])
        return node

    def _arguments(self, node: Any) -> Iterator[tuple[Any, int]]:
        if node.type != "trailer" or node.children[0].value != "(":
            return
        inside = node.children[1]
        several = inside.type == "arglist"
        holder = inside if several else node
        for place in range(0, len(inside.children), 2) if several else (1,):
            argument = holder.children[place]
            if argument.type == "argument":
                if argument.children[1] == "=" and argument.children[2].type not in self._LEFT:
                    yield argument, 2
            elif argument.type not in (*self._LEFT, "operator"):
                yield holder, place

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Show what it does."""
        return (Example("f(a, b=c)", "f(None, b=c)"), Example("f(a, b=c)", "f(a, b=None)", occurrence=1))


class WrongException(Operator):  # type: ignore[misc]
    """Catch what is not raised. cosmic-ray's own operator for this stops at names with a dot."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Yield each class that *node* catches."""
        for holder, place in self._caught(node):
            yield holder.children[place].start_pos, holder.children[place].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Replace the class."""
        holder, place = list(self._caught(node))[index]
        holder.children[place] = _name("ZeroDivisionError", holder.children[place])
        return node

    def _caught(self, node: Any) -> Iterator[tuple[Any, int]]:
        if node.type != "except_clause":
            return
        caught = node.children[1]
        if caught.type != "atom":
            yield node, 1
        elif hasattr(caught.children[1], "children") and caught.children[1].type == "testlist_comp":
            for place in range(0, len(caught.children[1].children), 2):
                yield caught.children[1], place
        else:
            yield caught, 1

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Show what it does."""
        return (
            Example("try: f()\nexcept A: pass\n", "try: f()\nexcept ZeroDivisionError: pass\n"),
            Example(
                "try: f()\nexcept (A, b.C): pass\n",
                "try: f()\nexcept (A, ZeroDivisionError): pass\n",
                occurrence=1,
            ),
        )


# cosmic-ray replaces each of twelve binary and eight comparison operators by every other: eleven ways to get
# the same TypeError, which would only make the share of survivors small, and `==` for `is`, which most
# objects cannot tell apart. Of these we take the opposite, and for an order its boundary.
_REPLACEMENTS = {
    "Binary": (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Mul", "Pow_Mul",
        "RShift_LShift", "LShift_RShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd",
    ),
    "Comparison": (
        "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is",
        "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
    ),
}  # fmt: skip
_TAKEN = {f"Replace{kind}Operator_{pair}" for kind, pairs in _REPLACEMENTS.items() for pair in pairs}
_MANY = tuple(f"Replace{kind}Operator_" for kind in _REPLACEMENTS)

_core = OPERATOR_PROVIDERS["core"]
OPERATOR_PROVIDERS["core"] = {
    name: _core[name]
    for name in _core
    if name != "ExceptionReplacer" and (not name.startswith(_MANY) or name in _TAKEN)
}
OPERATOR_PROVIDERS["ours"] = {
    operator.__name__: operator for operator in (RemoveStatement, NoneForArgument, WrongException)
}

OPERATORS = f"{operator_names()}{Path(__file__).read_text()}"
"""Changes when the operators do."""


def _name(word: str, instead_of: Any) -> Name:
    return Name(word, instead_of.start_pos, prefix=instead_of.get_first_leaf().prefix)


@dataclass(frozen=True)
class Mutants:
    """What can be changed in a module."""

    specs: list[MutationSpec]
    """Those that need a test, in the order of their places."""
    annotations: int
    """How many only change annotations."""


def list_mutants(source: Path) -> Mutants:
    """Return the mutants of *source*."""
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init([source], database, {})
        items = sorted(database.work_items, key=_place)
    original = source.read_text()
    seen = {ast.dump(ast.parse(original))}
    behaviour = _behaviour(original)
    specs, annotations = [], 0
    for item in items:
        try:
            code = mutated(original, item.mutations[0])
            program = ast.dump(ast.parse(code))
            with warnings.catch_warnings(action="error"):  # ``x is "text"``
                compile(code, str(source), "exec")
        except SyntaxError:
            continue
        if program in seen:
            continue
        seen.add(program)
        if _behaviour(code) == behaviour:
            annotations += 1
        else:
            specs.append(item.mutations[0])
    return Mutants(specs, annotations)


def _place(item: WorkItem) -> tuple[object, ...]:
    mutation = item.mutations[0]
    return mutation.start_pos, mutation.end_pos, mutation.operator_name, mutation.occurrence


def mutated(original: str, mutation: MutationSpec) -> str:
    """Return the text of a mutant."""
    code = mutate_code(original, get_operator(mutation.operator_name)(), mutation.occurrence)
    assert isinstance(code, str)
    return code


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _behaviour(code: str) -> str:
    return ast.dump(_WithoutAnnotations().visit(ast.parse(code)))
