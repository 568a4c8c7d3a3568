"""The contract only grows: `buf breaking` compares it with that of the last release."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pb2 import FileDescriptorSet as DescriptorSet
from google.rpc import status_pb2

from resnet50.v1 import image_pb2, inference_pb2, result_pb2, variant_pb2

ROOT = Path(__file__).resolve().parents[2]
RELEASED = ROOT / "protos" / "released.binpb"
BUF = Path(sys.executable).with_name("buf")


def breaking(descriptors: DescriptorSet, folder: Path) -> tuple[int, str]:
    """Return the exit code of `buf breaking` for a contract, and what it prints."""
    path = folder / "contract.binpb"
    path.write_bytes(descriptors.SerializeToString())
    done = subprocess.run(
        [BUF, "breaking", path, "--against", RELEASED, "--config", ROOT / "buf.yaml"],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def released() -> DescriptorSet:
    return DescriptorSet.FromString(RELEASED.read_bytes())


def file_of(descriptors: DescriptorSet, name: str) -> FileDescriptorProto:
    (found,) = (file for file in descriptors.file if file.name == f"resnet50/v1/{name}.proto")
    return found


def current() -> DescriptorSet:
    """Return the contract of the stubs."""
    found = DescriptorSet()
    imported = [file for file in released().file if not file.name.startswith("resnet50/")]
    assert status_pb2.DESCRIPTOR.name in [file.name for file in imported]
    found.file.extend(imported)
    for module in (image_pb2, result_pb2, inference_pb2, variant_pb2):
        file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for message in file.message_type:
            assert not message.nested_type
            for field in message.field:  # stubs leave them out
                described = module.DESCRIPTOR.message_types_by_name[message.name]
                field.json_name = described.fields_by_name[field.name].json_name
        found.file.append(file)
    return found


def remove_field(contract: DescriptorSet) -> None:
    del file_of(contract, "image").message_type[0].field[0]


def renumber_field(contract: DescriptorSet) -> None:
    file_of(contract, "result").message_type[0].field[0].number = 99


def change_type(contract: DescriptorSet) -> None:
    (timing,) = (one for one in file_of(contract, "result").message_type if one.name == "Timing")
    timing.field[0].type = FieldDescriptorProto.TYPE_STRING


def remove_method(contract: DescriptorSet) -> None:
    del file_of(contract, "inference").service[0].method[0]


def remove_enum_value(contract: DescriptorSet) -> None:
    del file_of(contract, "image").enum_type[0].value[1]


def test_contract_breaks_no_client_of_the_last_release(tmp_path):
    assert breaking(current(), tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (remove_field, 'field "1" with name "encoded" on message "Image" was deleted'),
        (renumber_field, 'on message "Classification" was deleted'),
        (change_type, 'on message "Timing" changed type from "uint64" to "string"'),
        (remove_method, 'RPC "Classify" on service "InferenceService" was deleted'),
        (remove_enum_value, 'on enum "PixelFormat" was deleted'),
    ],
)
def test_change_that_breaks_clients_is_refused(change, text, tmp_path):
    contract = released()
    change(contract)
    status, printed = breaking(contract, tmp_path)
    assert status != 0
    assert text in printed


def test_field_may_be_added(tmp_path):
    contract = released()
    field = file_of(contract, "image").message_type[0].field.add(name="later", number=99)
    field.type, field.label = FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.LABEL_OPTIONAL
    assert breaking(contract, tmp_path) == (0, "")
