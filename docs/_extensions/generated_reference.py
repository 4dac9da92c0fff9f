"""Reference pages that are made from the code when the site is built.

A page says where by a comment, which GitHub does not show: `<!-- generated: commands -->`, `components`, `pipelines`,
or `module NAME` for the public names of a module, of which `module NAME: One, Two` takes some.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

import yaml
from sphinx.application import Sphinx

_MARKER = re.compile(r"^<!-- generated: (\w+)(?: ([\w.]+))?(?:: ([\w, ]+))? -->$", re.MULTILINE)
_TYPES = {
    "STRING": "str",
    "NUMBER_INTEGER": "int",
    "NUMBER_DOUBLE": "float",
    "BOOLEAN": "bool",
    "LIST": "list",
    "STRUCT": "dict",
}
#: Defaults that are longer are files beside the pipeline.
_LONGEST_DEFAULT_CHARACTERS = 80
_Row = tuple[str, str, str, str]


def describe_commands() -> str:
    """Return every command with its usage, options and examples, as Markdown."""
    import typer

    from mlflywheel.cli import app

    return "\n".join(_describe_command(typer.main.get_command(app), "mlflywheel", 2))


def _describe_command(command: Any, path: str, level: int) -> Iterator[str]:
    context = command.context_class(command, info_name=path)
    told, _, examples = (command.help or "").partition("\b\n")
    yield f"{'#' * level} {path}\n"
    yield f"{_escape(' '.join(told.split()))}\n"
    if examples:
        yield f"```text\n{examples.strip()}\n```\n"
    for kind in ("argument", "option"):
        # The same names and texts as --help prints.
        records = [one.get_help_record(context) for one in command.params if one.param_type_name == kind]
        yield _table(
            (kind, ""), [(f"`{name}`", _escape(" ".join(told.split()))) for name, told in filter(None, records)]
        )
    if command.epilog:
        yield f"{_escape(' '.join(command.epilog.split()))}\n"
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _describe_command(child, f"{path} {name}", min(level + 1, 3))


def describe_components() -> str:
    """Return the inputs and outputs of every component as its compiled form has them, as Markdown."""
    import docstring_parser
    from google.protobuf import json_format

    from mlflywheel import components

    made = []
    for name in components.__all__:
        component = getattr(components, name)
        spec = json_format.MessageToDict(component.pipeline_spec)
        (found,) = spec["components"].values()
        (executor,) = spec["deploymentSpec"]["executors"].values()
        told = docstring_parser.parse(component.python_func.__doc__, docstring_parser.DocstringStyle.GOOGLE)
        about = "\n\n".join(filter(None, [told.short_description, told.long_description]))
        # kfp keeps no descriptions of outputs.
        outputs = {one.arg_name: one.description for one in told.params}
        outputs["Output"] = told.returns.description if told.returns else None
        order = [*inspect.signature(component.python_func).parameters, "Output"]
        made.append(f"## {name}\n\n{_escape(about.strip())}\n")
        made.append(f"Component `{spec['pipelineInfo']['name']}` in image `{executor['container']['image']}`.\n")
        made.append(_definitions("input", found.get("inputDefinitions", {}), order))
        made.append(_definitions("output", found.get("outputDefinitions", {}), order, outputs))
    return "\n".join(made)


def describe_pipelines() -> str:
    """Return the parameters of every pipeline as its committed YAML has them, as Markdown."""
    from mlflywheel.pipelines.catalog import PIPELINES

    made = []
    for pipeline in PIPELINES:
        spec = next(yaml.safe_load_all(pipeline.compiled.read_text(encoding="utf-8")))
        order = list(inspect.signature(pipeline.function().pipeline_func).parameters)
        made.append(f"## {pipeline.name}\n\n{_escape(spec['pipelineInfo']['description'])}\n")
        made.append(f"Its page: [{pipeline.name}](../../pipelines/{pipeline.package}/README.md).\n")
        made.append(_definitions("parameter", spec["root"]["inputDefinitions"], order))
    return "\n".join(made)


def _definitions(
    kind: str,
    definitions: dict[str, Any],
    order: list[str],
    descriptions: Mapping[str, str | None] = MappingProxyType({}),
) -> str:
    rows: list[tuple[int, _Row]] = []
    for name, one in definitions.get("artifacts", {}).items():
        type_name = one["artifactType"]["schemaTitle"].removeprefix("system.")
        told = one.get("description") or descriptions.get(name)
        rows.append((order.index(name), (f"`{name}`", type_name, "", _escape(told))))
    for name, one in definitions.get("parameters", {}).items():
        told = one.get("description") or descriptions.get(name)
        type_name = _TYPES.get(one["parameterType"], one["parameterType"])
        rows.append((order.index(name), (f"`{name}`", type_name, _default(name, one), _escape(told))))
    body = [row for _, row in sorted(rows)]
    if kind == "output":
        return _table((kind, "type", "description"), [(name, type_name, told) for name, type_name, _, told in body])
    return _table((kind, "type", "default", "description"), body)


def _default(name: str, parameter: dict[str, Any]) -> str:
    if "defaultValue" not in parameter:
        return "" if parameter.get("isOptional") else "required"
    value = parameter["defaultValue"]
    if parameter["parameterType"] == "NUMBER_INTEGER":
        value = int(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if len(text) > _LONGEST_DEFAULT_CHARACTERS:
        return "its file" if not text.startswith("sha256:") else "`sha256:…`"
    return f"`{text}`" if text else "empty"


def describe_module(name: str, chosen: str | None) -> str:
    """Return directives that document a module's public names, in their order in the source.

    Args:
        name: The module.
        chosen: Some of its names, separated by commas; all that are defined there if left out.
    """
    module = import_module(name)
    if chosen:
        names = [one.strip() for one in chosen.split(",")]
    elif hasattr(module, "__all__"):
        names = list(module.__all__)
    else:
        defined = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == name
        }
        names = sorted(defined, key=lambda key: inspect.getsourcelines(defined[key])[1])
    made = [f"## {name}\n", "```{eval-rst}", f".. currentmodule:: {name}", ""]
    for one in names:
        value = getattr(module, one)
        if inspect.isclass(value):
            bases = ["   :show-inheritance:"] if value.__bases__ != (object,) else []
            made += [f".. autoclass:: {one}", "   :members:", *bases, ""]
        elif inspect.isfunction(value):
            made += [f".. autofunction:: {one}", ""]
        else:
            made += [f".. autodata:: {one}", ""]
    return "\n".join([*made, "```", ""])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def _escape(text: str | None) -> str:
    """Keep Markdown from reading an asterisk, an underscore or a tag in plain sentences, and mark options as code."""
    parts = re.split(r"(`[^`]*`|(?<!\w)--[a-z][\w-]*)", text or "")
    return "".join(
        (one if one.startswith("`") else f"`{one}`") if odd % 2 else re.sub(r"([*_<\[\]{}])", r"\\\1", one)
        for odd, one in enumerate(parts)
    )


def _guard_returns(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon in `Returns:` for a type: types stand in signatures."""
    for number, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            indent = len(lines[number + 1]) - len(lines[number + 1].lstrip())
            lines[number + 1] = f"{' ' * indent}: {lines[number + 1].lstrip()}"


def _fill(app: Sphinx, page: str, source: list[str]) -> None:
    makers = {"commands": describe_commands, "components": describe_components, "pipelines": describe_pipelines}

    def make(match: re.Match[str]) -> str:
        kind, module, chosen = match.groups()
        return describe_module(module, chosen) if kind == "module" else makers[kind]()

    if _MARKER.search(source[0]):
        source[0] = _MARKER.sub(make, source[0])
        # What it is made from is code, whose changes Sphinx does not see.
        app.env.note_reread()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers with Sphinx."""
    app.connect("source-read", _fill)
    # Before napoleon reads them.
    app.connect("autodoc-process-docstring", _guard_returns, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
