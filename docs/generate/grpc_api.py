"""The services, messages and enums of the protos, with their comments."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from .markdown import code, escaped, link, paragraphs, table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "resnet50.v1"
# Numbers of fields in descriptor.proto, of which paths in the source info consist.
_PACKAGE, _MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD = 2, 4, 5, 6, 2, 2, 2
_SCALARS = {
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_DOUBLE: "double",
    FieldDescriptorProto.TYPE_FLOAT: "float",
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
}
# A line of a list in a comment: a term, at least two spaces or a line break, its description.
_TERM = re.compile(r"^ {2,3}(\S+)(?:\s+(.*))?$")


def section() -> str:
    """Return the reference of the own contract."""
    return reference(_descriptors("--descriptor-set"))


def oip_section() -> str:
    """Return a table of the methods of the Open Inference Protocol."""
    return methods(_descriptors("--oip-descriptor-set"))


def _descriptors(option: str) -> FileDescriptorSet:
    """Return descriptors with their comments, as the toolchain of the stubs does."""
    path = ROOT / ".cache" / f"{option.strip('-')}.binpb"
    script = ROOT / "protos" / "generate.py"
    subprocess.run([sys.executable, str(script), option, str(path)], check=True)
    return FileDescriptorSet.FromString(path.read_bytes())


def methods(descriptors: FileDescriptorSet) -> str:
    """Return a table of the methods of all services in a descriptor set with source info."""
    rows = []
    for proto in descriptors.file:
        file = _File(proto)
        for index, service in enumerate(proto.service):
            for number, method in enumerate(service.method):
                comment = file.comment(_SERVICE, index, _METHOD, number)
                rows.append((code(method.name), _exchange(method), _cell(comment)))
    return table(("method", "messages", "description"), rows)


def reference(descriptors: FileDescriptorSet) -> str:
    """Return the reference of the files of `PACKAGE` in a descriptor set with source info."""
    files = [_File(one) for one in descriptors.file if one.package == PACKAGE]
    services, messages, enums, conventions = [], [], [], []
    for file in files:
        # The first paragraph of a file's comment is about the file.
        if more := file.comment(_PACKAGE).partition("\n\n")[2]:
            conventions.append(more)
        services += [file.service(index) for index in range(len(file.proto.service))]
        messages += [file.message(index) for index in range(len(file.proto.message_type))]
        enums += [file.enum(index) for index in range(len(file.proto.enum_type))]
    return "\n\n".join(
        [
            "## Conventions",
            *map(_comment, conventions),
            *services,
            "## Messages",
            *messages,
            "## Enums",
            *enums,
        ]
    )


class _File:
    """A file of the protos and its comments.

    Args:
        proto: Its descriptor, with source info.
    """

    def __init__(self, proto: FileDescriptorProto) -> None:
        self.proto = proto
        self._comments = {
            tuple(place.path): place.leading_comments for place in proto.source_code_info.location
        }

    def comment(self, *path: int) -> str:
        """Return the comment above an element; "" if there is none."""
        return self._comments.get(path, "")

    def service(self, index: int) -> str:
        """Return the section of a service, with a heading for each method."""
        service: ServiceDescriptorProto = self.proto.service[index]
        parts = [f"## {service.name}", _comment(self.comment(_SERVICE, index))]
        for number, method in enumerate(service.method):
            parts += [
                f"### {method.name}",
                _exchange(method),
                _comment(self.comment(_SERVICE, index, _METHOD, number)),
            ]
        return "\n\n".join(parts)

    def message(self, index: int) -> str:
        """Return the section of a message."""
        message: DescriptorProto = self.proto.message_type[index]
        path = (_MESSAGE, index)
        parts = [f"### {message.name}", _comment(self.comment(*path))]
        rows = [
            (code(field.name), _field_type(message, field), _cell(comment))
            for field, comment in self._fields(message, path)
        ]
        if rows:
            parts.append(table(("field", "type", "description"), rows))
        return "\n\n".join(parts)

    def _fields(
        self, message: DescriptorProto, path: Sequence[int]
    ) -> Iterator[tuple[FieldDescriptorProto, str]]:
        for number, field in enumerate(message.field):
            yield field, self.comment(*path, _FIELD, number)

    def enum(self, index: int) -> str:
        """Return the section of an enum."""
        enum: EnumDescriptorProto = self.proto.enum_type[index]
        rows = [
            (
                code(value.name),
                str(value.number),
                _cell(self.comment(_ENUM, index, _VALUE, number)),
            )
            for number, value in enumerate(enum.value)
        ]
        return "\n\n".join(
            [
                f"### {enum.name}",
                _comment(self.comment(_ENUM, index)),
                table(("value", "number", "description"), rows),
            ]
        )


def _exchange(method: MethodDescriptorProto) -> str:
    """Return the request and the response of a method."""
    request, response = _type(method.input_type), _type(method.output_type)
    sent = f"stream of {request}" if method.client_streaming else request
    received = f"stream of {response}" if method.server_streaming else response
    return f"{sent} → {received}"


def _type(full_name: str) -> str:
    """Return the type of a message or an enum, with a link if it is one of ours."""
    name = full_name.removeprefix(".")
    if name.startswith(f"{PACKAGE}."):
        return link(name.removeprefix(f"{PACKAGE}."))
    return code(name.rpartition(".")[2] if name.startswith("inference.") else name)


def _field_type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    shown = _type(field.type_name) if field.type_name else code(_SCALARS[field.type])
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {shown}"
    if field.proto3_optional:
        return f"optional {shown}"
    if field.HasField("oneof_index"):
        return f"{shown}, one of {code(message.oneof_decl[field.oneof_index].name)}"
    return shown


def _cell(comment: str) -> str:
    return escaped(" ".join(comment.split()))


def _comment(comment: str) -> str:
    """Return a comment as Markdown: paragraphs, and tables for its lists of terms."""
    text = "\n".join(line.removeprefix(" ") for line in comment.splitlines())
    return "\n\n".join(_block(block) for block in re.split(r"\n\s*\n", text.strip()))


def _block(block: str) -> str:
    lines = block.splitlines()
    start = next((number for number, line in enumerate(lines) if _TERM.match(line)), None)
    if start is None:
        return paragraphs(block)
    rows: list[tuple[str, list[str]]] = []
    for line in lines[start:]:
        if found := _TERM.match(line):
            rows.append((found[1], [found[2] or ""]))
        else:
            rows[-1][1].append(line)
    listed = table(
        ("name", "meaning"), ((code(term), _cell(" ".join(text))) for term, text in rows)
    )
    before = paragraphs("\n".join(lines[:start]))
    return f"{before}\n\n{listed}" if before else listed
