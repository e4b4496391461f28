"""Is this graph fit to run? Everything that is wrong is said at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..hosts.schema import ComfyNode
from . import widgets
from .graph import constant, constants, is_link, links_of, needed, outputs, title
from .problems import Problem, WorkflowError, did_you_mean
from .registry import Nodes
from .ui_format import fits

Prompt = dict[str, Any]
Schemas = Mapping[str, widgets.Schema]


def check(
    prompt: Prompt,
    nodes: Nodes | None,
    schemas: Schemas,
    known: Sequence[Problem] = (),
    *,
    ends: Sequence[str] | None = None,
) -> Prompt:
    """The graph with every constant in its input's type. WorkflowError lists all problems, `known` ones included.

    Only what `ends` need, by default all output nodes, is checked in full; a class that nobody knows is a problem
    wherever it stands. Where the nodes are not here (None), what they judge themselves is left to them.
    """
    problems = list(known)
    problems += [_unknown(id_, node, schemas) for id_, node in prompt.items() if node["class_type"] not in schemas]
    ends = [each for each in outputs(prompt, schemas) if ends is None or each in ends]
    if not ends and not problems:
        problems.append(
            Problem("prompt_no_outputs", "nothing to do: the workflow has no output node (such as Save Image)")
        )
    wanted = needed(prompt, ends) if ends else set(prompt)
    checked = {id_: {**node, "inputs": _known(node, schemas)} for id_, node in prompt.items()}
    reported = {(each.node, each.input) for each in known}
    for id_, node in checked.items():
        if id_ in wanted and node["class_type"] in schemas:
            cls = None if nodes is None else nodes[node["class_type"]]
            found = list(_node(id_, node, checked, schemas, cls))
            problems += [each for each in found if (each.node, each.input) not in reported]
    problems += _cycles(checked, wanted)
    if problems:
        raise WorkflowError(problems)
    return checked


def _known(node: Prompt, schemas: Schemas) -> dict[str, Any]:
    # A file may hold inputs that another version of the node had.
    if node["class_type"] not in schemas:
        return dict(node["inputs"])
    names = {name for name, *_ in widgets.sockets(schemas[node["class_type"]])}
    return {name: value for name, value in node["inputs"].items() if name in names}


def _unknown(id_: str, node: Mapping[str, Any], schemas: Schemas) -> Problem:
    name = node["class_type"]
    by_words = {str(info.get("display_name")): known for known, info in schemas.items()}
    hint = did_you_mean(name, schemas) or did_you_mean(by_words.get(name, name), schemas)
    if name.startswith(("workflow>", "workflow/")):
        hint = " It is an old group node: open the workflow in ComfyUI and turn the group into a subgraph."
    hint = hint or " `velatura nodes` lists those there are."
    return Problem("missing_node_type", f"there is no node “{name}” here.{hint}", id_, title(node))


def _node(id_: str, node: Prompt, prompt: Prompt, schemas: Schemas, cls: type[ComfyNode] | None) -> Iterable[Problem]:
    given, judged = node["inputs"], set[str]() if cls is None else _arguments(cls)
    sound = True
    for name, type_, options, required in widgets.sockets(schemas[node["class_type"]]):
        problem = None
        if name not in given:
            if required:
                lacking = "it has no value" if widgets.is_edited(type_, options) else "nothing is connected"
                problem = ("required_input_missing", f"{lacking}; it needs {_article(_type_name(type_))}")
        elif is_link(given[name]):
            problem = _link(given[name], type_, prompt, schemas)
        else:
            problem, given[name] = _constant(given[name], type_, options, ranged=not ({name, "**"} & judged))
        if problem is not None:
            sound = False
            yield Problem(*problem, node=id_, title=title(node), input=name)
    if cls is not None and judged and sound:
        verdict = _verdict(cls, given, judged)
        if verdict is not None:
            yield Problem("custom_validation_failed", verdict, id_, title(node))


def _link(link: Sequence[Any], type_: Any, prompt: Prompt, schemas: Schemas) -> tuple[str, str] | None:
    source, slot = str(link[0]), link[1]
    if source not in prompt:
        return "bad_linked_input", f"it is connected to node {source}, which is not in the workflow"
    class_ = prompt[source]["class_type"]
    if class_ not in schemas:
        return None
    offered, whose = schemas[class_]["output"], f"“{title(prompt[source])}” (node {source})"
    if not 0 <= slot < len(offered):
        return "bad_linked_input", f"it is connected to output {slot} of {whose}, which has {len(offered)} outputs"
    if not fits(offered[slot], type_):
        message = f"it needs {_article(_type_name(type_))}, but {whose} gives {_article(_type_name(offered[slot]))}"
        return "return_type_mismatch", message
    return None


def _constant(value: Any, type_: Any, options: Mapping[str, Any], ranged: bool) -> tuple[tuple[str, str] | None, Any]:
    """What is wrong with a value, and the value in its type. A wrapped list stays wrapped."""
    offered = widgets.choices(type_, options)
    if offered is not None:
        return (_choice(constant(value), offered) if ranged else None), value
    if type_ not in CONVERT:
        if widgets.is_edited(type_, options) or type_ == "*":
            return None, value
        message = f"it needs a connection that brings {_article(_type_name(type_))}, but holds {_shown(value)}"
        return ("invalid_input_type", message), value
    try:
        value = CONVERT[type_](constant(value))
    except (TypeError, ValueError, OverflowError):
        return ("invalid_input_type", f"{_shown(value)} is not {WORDS[type_]}"), value
    low, high = options.get("min"), options.get("max")
    if ranged and low is not None and value < low:
        return ("value_smaller_than_min", f"{value} is below the smallest value, {low}{_span(low, high)}"), value
    if ranged and high is not None and value > high:
        return ("value_bigger_than_max", f"{value} is above the largest value, {high}{_span(low, high)}"), value
    return None, value


def _choice(value: Any, offered: list[Any]) -> tuple[str, str] | None:
    if value in offered:
        return None
    if not offered:
        return "value_not_in_list", f"there is no {_shown(value)}: there is nothing to choose from"
    hint = did_you_mean(value, offered)
    shown = ", ".join(str(each) for each in offered[:12]) + (
        f" and {len(offered) - 12} more" if len(offered) > 12 else ""
    )
    return "value_not_in_list", f"{_shown(value)} is not one of: {shown}.{hint}"


def _int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _str(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError
    return str(value)


def _bool(value: Any) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if value not in (0, 1):
        raise ValueError
    return bool(value)


CONVERT: dict[Any, Callable[[Any], Any]] = {"INT": _int, "FLOAT": _float, "STRING": _str, "BOOLEAN": _bool}
WORDS = {"INT": "a whole number", "FLOAT": "a number", "STRING": "text", "BOOLEAN": "true or false"}


def _type_name(type_: Any) -> str:
    return type_ if isinstance(type_, str) else "COMBO"


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"


def _shown(value: Any) -> str:
    text = str(value)
    return f"“{text[:60]}…”" if len(text) > 60 else f"“{text}”"


def _span(low: Any, high: Any) -> str:
    return f" (the range is {low} to {high})" if low is not None and high is not None else ""


def _arguments(cls: type[ComfyNode]) -> set[str]:
    """The inputs that the node judges itself, "**" for all of them; empty if it judges none."""
    if not overrides(cls, "validate_inputs"):
        return set()
    parameters = inspect.signature(cls.validate_inputs).parameters.values()
    return {"**" if each.kind is each.VAR_KEYWORD else each.name for each in parameters}


def overrides(cls: type[ComfyNode], name: str) -> bool:
    """Does the node define this method itself?"""
    owner = next(each for each in cls.__mro__ if name in vars(each))
    return owner.__module__ not in (ComfyNode.__module__, "comfy_api.latest._io")


def _verdict(cls: type[ComfyNode], given: Mapping[str, Any], judged: set[str]) -> str | None:
    try:
        verdict = cls.validate_inputs(
            **{name: value for name, value in constants(given).items() if {name, "**"} & judged}
        )
    except TypeError:
        # An input that it judges is wired: there is no constant to judge yet.
        return None
    return None if verdict is True else str(verdict or "the node refuses these values")


def _cycles(prompt: Prompt, wanted: set[str]) -> list[Problem]:
    """One problem for each circle of wires."""
    done: set[str] = set()
    found = []
    for start in prompt:
        if start in done or start not in wanted:
            continue
        path, pending = [start], [iter(links_of(prompt[start]))]
        while pending:
            following = next(pending[-1], None)
            if following is None:
                done.add(path.pop())
                pending.pop()
            elif following in path:
                names = [f"“{title(prompt[each])}” (node {each})" for each in reversed(path[path.index(following) :])]
                found.append(
                    Problem("dependency_cycle", f"these nodes wait for each other in a circle: {' → '.join(names)}")
                )
                # One report is enough for this circle.
                done.update(path[path.index(following) :])
            elif following in prompt and following not in done:
                path.append(following)
                pending.append(iter(links_of(prompt[following])))
    return found
