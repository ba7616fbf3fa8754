"""One definition out of a peer's source: its package, and all that the package needs, is then not imported."""

import ast

__all__ = ["define"]


def define(source: str, name: str, scope: dict) -> object | None:
    """The function or class `name` of `source`, run with `scope` as its globals; None if there is none."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    wanted = [node for node in ast.parse(source).body if isinstance(node, kinds) and node.name == name]
    if not wanted:
        return None
    exec(compile(ast.Module(wanted[-1:], []), name, "exec"), scope)
    return scope[name]
