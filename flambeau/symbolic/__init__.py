"""Programs as data: calls of classes and functions as trees that can be changed, compared, saved, searched and built.

After PyGlove (Peng et al. 2020, "Symbolic Programming for Automated Machine Learning").
"""

import importlib
from typing import TYPE_CHECKING, Any

from flambeau.symbolic.building import build, clone
from flambeau.symbolic.containers import Dict, List, Tuple
from flambeau.symbolic.detour import detour
from flambeau.symbolic.dna import DNA
from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.fields import Range
from flambeau.symbolic.hyper import Hyper, evolve, floatv, intv, manyof, oneof, permutate
from flambeau.symbolic.inferred import inferred
from flambeau.symbolic.node import Node
from flambeau.symbolic.parse import parse_value
from flambeau.symbolic.patching import (
    patch,
    patch_on_key,
    patch_on_member,
    patch_on_path,
    patch_on_type,
    patch_on_value,
)
from flambeau.symbolic.prior import DesignPrior
from flambeau.symbolic.rebind import Change, Insert
from flambeau.symbolic.serialization import digest, from_json, from_yaml, load, save, to_json, to_yaml
from flambeau.symbolic.space import Decision, Point, Space
from flambeau.symbolic.spec import Choices, Custom, Float, Spec
from flambeau.symbolic.symbol import Symbol, symbolize
from flambeau.symbolic.template import Template, template
from flambeau.symbolic.trace import Trace, trace
from flambeau.symbolic.tree import MISSING, Action, Tree
from flambeau.symbolic.values import gt, lt

if TYPE_CHECKING:
    from flambeau.symbolic.decision_table import summary
    from flambeau.symbolic.difference import changed_lines, diff
    from flambeau.symbolic.rebuilding import rebuild

# Imported when they are asked for: `rebuild` needs torch, the others modules that a program rarely wants.
_LATE = {"changed_lines": "difference", "diff": "difference", "rebuild": "rebuilding", "summary": "decision_table"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)


__all__ = [
    "DNA",
    "MISSING",
    "Action",
    "Change",
    "Choices",
    "Custom",
    "Decision",
    "DesignPrior",
    "Dict",
    "Float",
    "Hyper",
    "Insert",
    "List",
    "Node",
    "Point",
    "Range",
    "Space",
    "Spec",
    "Symbol",
    "SymbolicError",
    "Template",
    "Trace",
    "Tree",
    "Tuple",
    "build",
    "changed_lines",
    "clone",
    "detour",
    "diff",
    "digest",
    "evolve",
    "floatv",
    "from_json",
    "from_yaml",
    "gt",
    "inferred",
    "intv",
    "load",
    "lt",
    "manyof",
    "oneof",
    "parse_value",
    "patch",
    "patch_on_key",
    "patch_on_member",
    "patch_on_path",
    "patch_on_type",
    "patch_on_value",
    "permutate",
    "rebuild",
    "save",
    "summary",
    "symbolize",
    "template",
    "to_json",
    "to_yaml",
    "trace",
]
